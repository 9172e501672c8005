"""`prefkit train`: check everything cheap, load, train, save, sum up."""

import itertools
import logging
import os
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefkit.cli.config_file import read_config
from prefkit.convert.hints import HINTS
from prefkit.errors import ConfigError
from prefkit.files.atomic import write_text
from prefkit.options.command import Command
from prefkit.options.parse import check_dashes, join, read_flags, split
from prefkit.options.secrets import HIDDEN, without_secrets
from prefkit.options.yaml_file import read_yaml
from prefkit.train.common import CommonFields
from prefkit.train.fields import PreferenceFields, ScriptArguments
from prefkit.train.options import Options, make_options

_ABOUT = """\
Trains a model on preference pairs.

Every option is a key of the YAML and a flag; the flag wins. A flag without a value means true,
several values make a list.
"""
COMMAND = Command(
    name="train",
    line=("CONFIG.yaml [--field value …]", "train a model on preference pairs"),
    about=_ABOUT,
    words=(
        "CONFIG.yaml",
        "Options as a YAML file; a config of TRL, LLaMA-Factory or axolotl is translated.",
    ),
    options=(ScriptArguments, PreferenceFields, CommonFields),
    elsewhere=HINTS,
    tail="Every other field of transformers.TrainingArguments is a flag as well.",
)
_SHOWN = (
    "loss",
    "rewards/margins",
    "rewards/accuracies",
    "rewards/chosen",
    "rewards/rejected",
    "kl/chosen",
    "kl/rejected",
    "aux_loss",
)


def run(argv: Sequence[str]) -> int:
    """Trains as a command line says; returns the exit code.

    Raises:
        PrefkitError: a user's mistake.
    """
    from prefkit.train.checks.options import one_line_errors

    with one_line_errors():
        words, flags, given = read_run(COMMAND, argv)
        options = make_options(given)
    _quiet()
    from prefkit.train.checkpointing.leaving import leave_group
    from prefkit.train.checkpointing.lost_process import lost_processes_told
    from prefkit.train.checkpointing.same_run import CONFIG_FILE, check_same_run
    from prefkit.train.launch import check_paths, make_trainer

    script, config, _ = options
    folder, resume = Path(config.output_dir), config.resume_from_checkpoint
    check_paths(script, config.output_dir, resume)
    check_same_run(options, _say)
    started = time.perf_counter()
    with one_line_errors():
        trainer = make_trainer(script, config)
    if trainer.is_world_process_zero():
        write_text(folder / CONFIG_FILE, options.as_yaml())
        _say_plan(script, config, trainer)
    try:
        with lost_processes_told(folder, str(resume).lower() in ("auto", "true")):
            result = trainer.train(resume_from_checkpoint=resume)
            trainer.save_model()
            trainer.save_state()
    except KeyboardInterrupt:
        secret = {name.partition(".")[0] for name in without_secrets(given)[1]}
        shown = {name: [HIDDEN] if name in secret else value for name, value in flags.items()}
        again = join(words, {**shown, "resume_from_checkpoint": ["auto"]})
        return _interrupted(folder, trainer.state.global_step, again)
    _say_summary(trainer, result, folder, time.perf_counter() - started)
    leave_group()
    return 0


def load_options(argv: Sequence[str]) -> Options:
    """The options of `prefkit train [CONFIG.yaml] [--field value …]`.

    Raises:
        ConfigError: anything wrong with the file, a flag, a value or their combination.
    """
    return make_options(read_run(COMMAND, argv)[2])


def read_run(
    command: Command, argv: Sequence[str]
) -> tuple[list[str], dict[str, list[str]], dict[str, Any]]:
    """A command line of this command, or of one that takes its options and more.

    Returns:
        the config file, if any; flag → its words; option → value, of the file or a flag, which
        wins.

    Raises:
        ConfigError: anything wrong with the file, a flag or a value.
    """
    check_dashes(argv)
    _check_file(list(itertools.takewhile(lambda word: word[:1] != "-", argv)))
    reader = whole(command)
    words, flags = split(reader, argv)
    _check_file(words)
    of_file = replace(whole(COMMAND), elsewhere=command.elsewhere)
    given = read_config(of_file, words[0]) if words else {}
    return words, flags, given | read_flags(reader, flags)


def whole(command: Command) -> Command:
    """A command with all fields of `transformers.TrainingArguments`, which take seconds to load."""
    from prefkit.train.config import PreferenceConfig

    return replace(command, options=(*command.options, PreferenceConfig))


def _check_file(words: Sequence[str]) -> None:
    """Refuses a file that cannot be read, before anything is imported."""
    if len(words) > 1:
        raise ConfigError(f"One config file, please; got {len(words)}: {', '.join(words)}.")
    if words:
        read_yaml(words[0])


def _quiet() -> None:
    """None of the lines of other libraries that say no more than ours."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    # Its lines about every retry say no more than the one message at the end.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def describe(objective: Any) -> str:
    """The objective in words: its beta, and what differs from its defaults."""
    return ", ".join(f"{name} {_shown(value)}" for name, value in objective.changed().items())


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return " + ".join(map(_shown, value))
    return "on" if value is True else f"{value:g}" if isinstance(value, float) else str(value)


def _say_plan(script: ScriptArguments, config: Any, trainer: Any) -> None:
    from prefkit.train.rows.datasets import plain
    from prefkit.train.rows.layout import describe_rows, describe_unpacked

    trainable, everything = _parameters(trainer.model)
    bits = "4-bit " if script.load_in_4bit else "8-bit " if script.load_in_8bit else ""
    of = f"{trainable:,} of {everything:,} parameters train"
    _say(f"Model      {script.model}: {of}{', on ' + bits + 'weights' if bits else ''}")
    _say(f"Method     {config.method}: {describe(trainer.objective)}")
    _say(f"Reference  {_reference_of(trainer, script.ref_model)}")
    if trainer.router is not None:
        _say(f"Routers    auxiliary loss of weight {trainer.router.coefficient:g}")
    pairs = plain(trainer.train_dataset)
    report = pairs.report
    told = report.incidents or report.unknown  # its summary was a warning when it was read
    lines = [f"{len(pairs)} pairs (see above)"] if told else report.summary().splitlines()
    for place, line in enumerate(lines):
        _say(f"{'Data' if place == 0 else '':10} {line}")
    _say(f"Rows       {describe_rows(trainer.layout, trainer.train_dataset)}")
    if words := describe_unpacked(trainer.model):
        _say(f"{'':10} {words}")


def _parameters(model: Any) -> tuple[int, int]:
    """How many parameters train, of how many; two of 4 bits in a byte are two."""
    if hasattr(model, "get_nb_trainable_parameters"):  # PEFT
        return model.get_nb_trainable_parameters()
    counts = [(value.numel(), value.requires_grad) for value in model.parameters()]
    return sum(count for count, trains in counts if trains), sum(count for count, _ in counts)


def _reference_of(trainer: Any, named: str | None) -> str:
    """The reference of a run in words."""
    reference, moves = trainer.reference, trainer.models.reference_moves
    if reference is None:
        return "precomputed" if trainer.objective.needs_reference else "none"
    if reference.adapter is not None:
        return f"{named}, beside the adapter" if named else "the adapter as it is now, kept beside"
    if reference.adapter_owner is not None:
        return "the model with its adapter off"
    return (named or "a frozen copy of the model") + (", moved towards it" if moves else "")


def _trained(begun: int, ended: int, seconds: float) -> str:
    if (count := ended - begun) == 0:
        return f"The run was finished at step {ended} already: nothing was trained."
    steps = "1 step" if count == 1 else f"{count} steps"
    which = f" ({begun + 1} to {ended})" if begun else ""
    return f"Trained {steps}{which} in {seconds:.0f} s, all included."


def _say_summary(trainer: Any, result: Any, folder: Path, seconds: float) -> None:
    if not trainer.is_world_process_zero():
        return
    history = trainer.state.log_history
    train = [line for line in history if "loss" in line]
    evaluations = [line for line in history if "eval_loss" in line]
    print(f"\n{_trained(trainer.started_at, result.global_step, seconds)}")
    if train:
        first, last = train[0], train[-1]
        one = len(train) == 1  # its only column stands where the last one would
        begun = "" if one else f"step {first['step']}"
        print(f"{'':24}{begun:>12}{'step ' + str(last['step']):>12}")
        for name in [name for name in _SHOWN if name in last]:
            before = "" if one else f"{first.get(name, float('nan')):.4f}"
            print(f"{name:24}{before:>12}{last[name]:12.4f}")
        speed = sum(line["tokens_per_second"] for line in train) / len(train)
        print(f"{'tokens a second':24}{'':12}{speed:12,.0f}")
        print(f"{'peak memory, MiB':24}{'':12}{last['peak_memory_mb']:12,.0f}")
    if skipped := train[-1].get("skipped_rows") if train else 0:
        print(f"{'skipped rows':24}{'':12}{skipped:12,}")
    if evaluations:
        first, last = evaluations[0], evaluations[-1]
        for name in [f"eval_{name}" for name in _SHOWN if f"eval_{name}" in last]:
            before = f"{first[name]:12.4f}" if len(evaluations) > 1 else " " * 12
            print(f"{name:24}{before}{last[name]:12.4f}")
    what = "adapter" if hasattr(trainer.model, "peft_config") else "model"
    print(f"The {what} is in {folder}{os.sep}, the log in {folder / 'trainer_state.json'}.")


def _interrupted(folder: Path, step: int, again: Sequence[str]) -> int:
    from prefkit.train.checkpointing import checkpoint

    _say(f"\nInterrupted at step {step}.")
    newest, _ = checkpoint.newest_complete(folder)
    if newest is None:
        _say("There is no complete checkpoint yet (--save_steps sets how often one is written).")
    else:
        _say(f"The newest complete checkpoint is {newest}. Go on from it with:")
        _say(f"  prefkit train {shlex.join(again)}")
    return 130
