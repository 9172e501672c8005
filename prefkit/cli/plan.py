"""prefkit plan [CONFIG.yaml] [--field value …]: memory, work and command of a run, before it.

Takes what `prefkit train` takes, and:

  --gpus N                  processes (the accelerate config's, or 1)
  --gpu_memory 80GB         memory of one GPU; GB = 10⁹ bytes, GiB = 2³⁰ (this GPU's, or 80GB)
  --lengths P,C,R           tokens of prefix, chosen and rejected, in place of the data
  --accelerate_config FILE  config file of `accelerate launch`: processes, FSDP2, precision
  --exact                   also torch's FSDP memory tracker on a whole step (a minute or two)
  --json                    one JSON object

`model` may be a folder, a Hub name that is cached, or a config.json by itself; weights are never
loaded.
"""

import difflib
import gc
import json
import logging
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefkit.errors import ConfigError, PrefkitError
from prefkit.options.parse import load_options, read_yaml, split_flags
from prefkit.plan.command import OWN
from prefkit.plan.inputs.launcher import read_launcher
from prefkit.plan.inputs.setting import DTYPES, parse_bytes, read_setting

_DEFAULT_ROOM = "80GB"


def run(argv: Sequence[str]) -> int:
    """Prints a plan; returns 0, also where the run does not fit.

    Raises:
        PrefkitError: a mistake in the options, the data or the model.
    """
    if "--help" in argv or "-h" in argv:
        print(__doc__)
        return 0
    own, words = _split(argv)
    plan, exact = plan_arguments(own, words)
    from prefkit.plan.table import plan_json, plan_table

    if own.get("json"):
        print(json.dumps(plan_json(plan, exact)))
    else:
        print(plan_table(plan, exact))
    return 0


def plan_arguments(own: dict[str, Any], words: list[str]) -> tuple[Any, Any]:
    """The plan, and what the tracker found or None, of parsed arguments."""
    parallel, options_words = _shared_rows(words)
    options = _options(options_words, "lengths" in own)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    from prefkit.plan.inputs.lengths import given_lengths
    from prefkit.plan.inputs.shape import load_config
    from prefkit.plan.planner import Planner
    from prefkit.plan.planning import make_plan
    from prefkit.plan.refusals import check_lengths, check_start

    launcher = read_launcher(own.get("accelerate_config"))
    config = load_config(options.script.model)
    named = str(getattr(config, "dtype", None)).removeprefix("torch.")
    setting = read_setting(
        options,
        gpus=own.get("gpus"),
        launcher=launcher,
        dtype=DTYPES.get(named),
        sequence_parallel=parallel,
    )
    check_start(options, setting, config, bool(launcher))
    if "lengths" in own:
        lengths = given_lengths(own["lengths"])
        check_lengths(lengths, options.config.max_length)
    else:
        lengths = _data_lengths(options, config)
    room, supposed = _room(own, setting.on_cpu)
    plan = make_plan(
        Planner(options.script.model, config, lengths),
        setting,
        room,
        words=_with_data(_with_weights(words, options.script.model)),
        launcher=own.get("accelerate_config"),
        choose_sharding=not launcher,
        supposed=supposed,
    )
    if not own.get("exact"):
        return plan, None
    from prefkit.plan.costs.exact import exact_memory

    gc.enable()  # garbage would be counted as held
    return plan, exact_memory(config, plan.shape, plan.setting, plan.heaviest)


def _options(words: list[str], lengths: bool) -> Any:
    """The options of the run; with lengths, `train_data` may be missing and is never read.

    Raises:
        ConfigError: a mistake in them, in the words of this command.
    """
    from prefkit.train.checks.options import one_line_errors

    if not _has_data(words):
        if not lengths:
            raise ConfigError(
                "train_data is missing. Name the file(s) of preference pairs, or give their "
                "lengths: --lengths 16000,8000,8000 (tokens of prefix, chosen and rejected)."
            )
        words = [*words, "--train_data", "none.jsonl"]
    try:
        with one_line_errors():
            return load_options(words)
    except ConfigError as error:
        found = re.search(r"^(.*): there is no option '([^']*)'\.", str(error))
        if found is None:
            raise
        raise ConfigError(_stranger(found[1], found[2], str(error))) from error


def _stranger(where: str, name: str, message: str) -> str:
    """What to say of an option that training does not know: it may be one of this command."""
    if name in OWN:
        return f"{where}: {name} is a flag of `prefkit plan`. Give it as --{name}."
    if near := difflib.get_close_matches(name, OWN, n=1, cutoff=0.7):
        return f"{where}: there is no option '{name}'. Did you mean --{near[0]}?"
    return message.replace("prefkit train --help", "prefkit plan --help")


def _has_data(words: list[str]) -> bool:
    files, flags = split_flags(words)
    return "train_data" in flags or (bool(files) and bool(read_yaml(files[0]).get("train_data")))


def _with_data(words: list[str]) -> list[str]:
    """The words for a run: lengths can be planned, but not trained on."""
    return words if _has_data(words) else [*words, "--train_data", "PAIRS.jsonl"]


def _shared_rows(words: list[str]) -> tuple[int, list[str]]:
    """`sequence_parallel_size`, and the words with it set to 1.

    `prefkit train` compares it with the launcher's processes, which a plan only supposes.
    """
    name = "sequence_parallel_size"
    files, flags = split_flags(words)
    value: Any = flags[name][0] if flags.get(name) else None
    if value is None and files:
        value = read_yaml(files[0]).get(name)
    if value in (None, 1):
        return 1, words
    if not str(value).isdigit() or not int(value):
        raise ConfigError(f"{name} is {value!r}; it must be a whole number, 1 or more.")
    return int(value), [*_without(words, (name,)), f"--{name}", "1"]


def _with_weights(words: list[str], model: str) -> list[str]:
    """The words for a run: a config by itself is planned, but not trained."""
    if not Path(model).is_file():
        return words
    words = _without(words, ("model",))
    files, _ = split_flags(words)
    named = bool(files) and "model" in read_yaml(files[0])
    return words if named else [*words, "--model", "FOLDER_WITH_WEIGHTS"]


def _split(argv: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """This command's own flags, and the words that `prefkit train` takes."""
    _, flags = split_flags(argv)
    own: dict[str, Any] = {}
    for name in OWN:
        if name not in flags:
            continue
        values = flags[name]
        if name in ("exact", "json"):
            if values:
                raise ConfigError(f"--{name} takes no value. Put the config file first.")
            own[name] = True
        elif len(values) != 1:
            raise ConfigError(f"--{name} takes one value.")
        else:
            own[name] = values[0]
    if "gpus" in own:
        if not own["gpus"].isdigit() or not int(own["gpus"]):
            raise ConfigError(f"gpus is {own['gpus']!r}; it must be a whole number, 1 or more.")
        own["gpus"] = int(own["gpus"])
    return own, _without(argv, OWN)


def _without(argv: Sequence[str], names: Sequence[str]) -> list[str]:
    """The words without some flags and their values."""
    words: list[str] = []
    skipping = False
    for word in argv:
        if word.startswith("--"):
            skipping = word[2:].partition("=")[0].replace("-", "_") in names
        if not skipping:
            words.append(word)
    return words


def _room(own: dict[str, Any], on_cpu: bool) -> tuple[int, bool]:
    """Bytes that a process may take, and whether they are of a GPU that is only supposed."""
    if "gpu_memory" in own:
        return parse_bytes(own["gpu_memory"]), False
    import torch

    if on_cpu:
        import psutil

        return int(psutil.virtual_memory().total), False
    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory), False
    return parse_bytes(_DEFAULT_ROOM), True


def _data_lengths(options: Any, model_config: Any) -> Any:
    """Tokenises the training data as `prefkit train` will, writing nothing to its folders."""
    from prefkit.model.loading import load_tokenizer
    from prefkit.plan.inputs.lengths import data_lengths
    from prefkit.train.checks.options import one_line_errors
    from prefkit.train.rows.pairs import prepare_dataset

    script, config, _ = options
    name = script.tokenizer or script.model
    if Path(name).is_file():
        raise ConfigError(
            f"model: {name} is a config by itself, without a tokenizer to read train_data with. "
            "Give --tokenizer FOLDER, or the lengths: --lengths 16000,8000,8000."
        )
    for file in script.train_data if isinstance(script.train_data, list) else [script.train_data]:
        if file.endswith((".json", ".jsonl", ".parquet")) and not Path(file).exists():
            raise ConfigError(
                f"train_data: there is no file {file}. Name one, or give the lengths: "
                "--lengths 16000,8000,8000."
            )
    try:
        tokenizer = load_tokenizer(name)
    except PrefkitError as error:
        raise type(error)(f"{error} To plan without it: --lengths 16000,8000,8000.") from error
    with tempfile.TemporaryDirectory() as folder, one_line_errors():
        return data_lengths(
            prepare_dataset(
                script.train_data,
                tokenizer,
                _elsewhere(config, folder),
                model_config,
                "train",
                split=script.train_split,
            )
        )


def _elsewhere(config: Any, folder: str) -> Any:
    """The config with another output folder, without its checks' side effects."""
    import copy

    other = copy.copy(config)
    other.output_dir = folder
    return other
