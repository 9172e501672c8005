"""`prefkit plan`: memory, work and command of a run, before it."""

import gc
import json
import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from prefkit.cli import train
from prefkit.errors import ConfigError, PrefkitError
from prefkit.options.check import check_options
from prefkit.options.command import Command
from prefkit.options.option import option
from prefkit.options.parse import join
from prefkit.options.yaml_file import read_yaml
from prefkit.train.options import Options, make_options


@dataclass(kw_only=True)
class PlanOptions:
    """What a run is planned for."""

    # -- plan -----------------------------------------------------------------------------------
    gpus: int | None = option(None, at_least=1)
    """Processes; None = the accelerate config's, or 1."""
    gpu_memory: str | None = None
    """Memory of one GPU, such as 80GB; GB = 10⁹ bytes, GiB = 2³⁰. None = this GPU's, or 80GB."""
    lengths: str | None = None
    """P,C,R: tokens of prefix, chosen and rejected, in place of the data, such as
    16000,8000,8000. None = those of the data."""
    accelerate_config: str | None = None
    """Config file of `accelerate launch`: processes, FSDP2, precision. None = no launcher."""
    exact: bool = False
    """Also torch's FSDP memory tracker on a whole step (a minute or two)."""
    json: bool = False
    """One JSON object."""


OWN = tuple(field.name for field in fields(PlanOptions))
_ABOUT = """\
Memory, work and command of a run, before it.

Takes what `prefkit train` takes, and a few flags of its own. The model may be a folder, a Hub name
that is cached, or a config.json by itself; weights are never loaded.
"""
COMMAND = Command(
    name="plan",
    line=("CONFIG.yaml [--gpus N] [--json]", "memory, work and command of a run, before it"),
    about=_ABOUT,
    words=train.COMMAND.words,
    options=(PlanOptions, *train.COMMAND.options),
    elsewhere={
        **train.COMMAND.elsewhere,
        **{name: f"It is a flag of `prefkit plan`: give it as --{name}." for name in OWN},
    },
    tail=train.COMMAND.tail,
)
_LENGTHS = "--lengths 16000,8000,8000"
_DEFAULT_ROOM = "80GB"


def run(argv: Sequence[str]) -> int:
    """Prints a plan; returns 0, also where the run does not fit.

    Raises:
        PrefkitError: a mistake in the options, the data or the model.
    """
    gc.disable()  # looking through what the imports make takes a fifth of the command's time
    try:
        wanted, words, flags, given = _read(argv)
        plan, exact = _planned(wanted, words, flags, given)
        from prefkit.plan.table import plan_json, plan_table

        print(json.dumps(plan_json(plan, exact)) if wanted.json else plan_table(plan, exact))
    finally:
        gc.enable()
    return 0


def plan_arguments(own: Mapping[str, Any], argv: Sequence[str]) -> tuple[Any, Any]:
    """The plan of a command line, and what the tracker found or None.

    Args:
        own: attributes of `PlanOptions`.
        argv: what `prefkit train` takes.

    Raises:
        PrefkitError: a mistake in the options, the data or the model.
    """
    _, words, flags, given = _read(argv)
    return _planned(PlanOptions(**own), words, flags, given)


def _read(
    argv: Sequence[str],
) -> tuple[PlanOptions, list[str], dict[str, list[str]], dict[str, Any]]:
    """This command's own options, and what `train.read_run` gives of those of the run."""
    from prefkit.train.checks.options import one_line_errors

    with one_line_errors():
        words, flags, given = train.read_run(COMMAND, argv)
    wanted = PlanOptions(**{name: given.pop(name) for name in OWN if name in given})
    check_options(wanted)
    return wanted, words, {k: v for k, v in flags.items() if k not in OWN}, given


def _planned(
    wanted: PlanOptions, words: list[str], flags: dict[str, list[str]], given: dict[str, Any]
) -> tuple[Any, Any]:
    options = _options(wanted, given)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    from prefkit.plan.inputs.launcher import read_launcher
    from prefkit.plan.inputs.lengths import given_lengths
    from prefkit.plan.inputs.setting import DTYPES, read_setting
    from prefkit.plan.inputs.shape import load_config
    from prefkit.plan.planner import Planner
    from prefkit.plan.planning import make_plan
    from prefkit.plan.refusals import check_lengths, check_planned, check_start

    check_planned(options.script)
    launcher = read_launcher(wanted.accelerate_config)
    config = load_config(options.script.model)
    named = str(getattr(config, "dtype", None)).removeprefix("torch.")
    setting = read_setting(options, gpus=wanted.gpus, launcher=launcher, dtype=DTYPES.get(named))
    check_start(options, setting, config, bool(launcher))
    if wanted.lengths is not None:
        lengths = given_lengths(wanted.lengths)
        check_lengths(lengths, options.config.max_length)
    else:
        lengths = _data_lengths(options, config)
    room, supposed = _room(wanted, setting.on_cpu)
    plan = make_plan(
        Planner(options.script.model, config, lengths),
        setting,
        room,
        words=_words_of_run(words, flags, options),
        launcher=wanted.accelerate_config,
        choose_sharding=not launcher,
        supposed=supposed,
    )
    if not wanted.exact:
        return plan, None
    from prefkit.plan.costs.exact import exact_memory

    gc.enable()  # garbage would be counted as held
    return plan, exact_memory(config, plan.shape, plan.setting, plan.heaviest)


def _options(wanted: PlanOptions, given: dict[str, Any]) -> Options:
    """The options of the run; with lengths, train_data may be missing and is never read."""
    from prefkit.train.checks.options import one_line_errors

    if wanted.lengths is None and not given.get("train_data"):
        raise ConfigError(
            "train_data is missing. Name the file(s) of preference pairs, or give their "
            f"lengths: {_LENGTHS} (tokens of prefix, chosen and rejected)."
        )
    with one_line_errors():
        return make_options(given, needs_data=wanted.lengths is None)


def _words_of_run(words: list[str], flags: dict[str, list[str]], options: Options) -> list[str]:
    """The words for `prefkit train`: a config by itself and mere lengths can only be planned."""
    flags = dict(flags)
    if "model" in flags and Path(options.script.model).is_file():
        del flags["model"]
        if not words or "model" not in read_yaml(words[0]):
            flags["model"] = ["FOLDER_WITH_WEIGHTS"]
    if not options.script.train_data:
        flags["train_data"] = ["PAIRS.jsonl"]
    return join(words, flags)


def _room(wanted: PlanOptions, on_cpu: bool) -> tuple[int, bool]:
    """Bytes that a process may take, and whether they are of a GPU that is only supposed."""
    from prefkit.plan.inputs.setting import parse_bytes

    if wanted.gpu_memory is not None:
        return parse_bytes(wanted.gpu_memory), False
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
            f"Give --tokenizer FOLDER, or the lengths: {_LENGTHS}."
        )
    for file in script.train_data if isinstance(script.train_data, list) else [script.train_data]:
        if file.endswith((".json", ".jsonl", ".parquet")) and not Path(file).exists():
            raise ConfigError(
                f"train_data: there is no file {file}. Name one, or give the lengths: {_LENGTHS}."
            )
    try:
        tokenizer = load_tokenizer(name)
    except PrefkitError as error:
        raise type(error)(f"{error} To plan without it: {_LENGTHS}.") from error
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
