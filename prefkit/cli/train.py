"""What `prefkit train` does: check everything cheap, load, train, save, sum up."""

import os
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

from prefkit.errors import ConfigError, ModelError
from prefkit.files.atomic import check_writable, write_text
from prefkit.model.loading import check_model_folder, load_config, load_model, load_tokenizer
from prefkit.options.parse import Options
from prefkit.train.checkpointing import checkpoint
from prefkit.train.checkpointing.leaving import leave_group
from prefkit.train.checkpointing.lost_process import lost_processes_told
from prefkit.train.checkpointing.same_run import CONFIG_FILE, check_same_run
from prefkit.train.checks.options import one_line_errors
from prefkit.train.fields import ScriptArguments

_DATA_ENDINGS = (".json", ".jsonl", ".parquet", ".csv", ".jsonlines", ".ndjson")
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


def check_paths(script: ScriptArguments, output_dir: str, resume: Any) -> None:
    """Refuses missing model folders and data files and unwritable outputs, before any loading.

    Raises:
        ConfigError: data that is not there; an output folder that cannot be written, or that holds
            another run's checkpoints.
        ModelError: a model folder that is not there or is no model.
    """
    for option in ("model", "ref_model"):
        if (name := getattr(script, option)) is not None:
            check_model_folder(option, name)
    for option in ("train_data", "eval_data"):
        names = getattr(script, option) or []
        for name in [names] if isinstance(names, str) else names:
            if name.endswith(_DATA_ENDINGS) and "://" not in name and not Path(name).exists():
                raise ConfigError(f"{option}: there is no file {name}.")
    _check_output(Path(output_dir), resume)


def _check_output(folder: Path, resume: Any) -> None:
    check_writable(folder, "output_dir")
    found = checkpoint.list_checkpoints(folder)
    if found and (not resume or str(resume).lower() == "false"):
        raise ConfigError(
            f"output_dir: {folder} already holds {found[0].name}. Go on from it with "
            "--resume_from_checkpoint auto, or choose another output_dir."
        )


def run(options: Options, argv_hint: str = "") -> int:
    """Trains as the options say; returns the exit code.

    Args:
        options: of `load_options`.
        argv_hint: the command line, for the hint on how to go on after an interruption.
    """
    script, config, _ = options
    check_paths(script, config.output_dir, config.resume_from_checkpoint)
    check_same_run(options, _say)
    started = time.perf_counter()
    with one_line_errors():
        trainer = _make_trainer(script, config)
    if trainer.is_world_process_zero():
        write_text(Path(config.output_dir) / CONFIG_FILE, options.as_yaml())
        _say_plan(script, config, trainer)
    resuming = str(config.resume_from_checkpoint).lower() in ("auto", "true")
    try:
        with lost_processes_told(Path(config.output_dir), resuming):
            result = trainer.train(resume_from_checkpoint=config.resume_from_checkpoint)
            trainer.save_model()
            trainer.save_state()
    except KeyboardInterrupt:
        return _interrupted(Path(config.output_dir), trainer.state.global_step, argv_hint)
    _say_summary(trainer, result, Path(config.output_dir), time.perf_counter() - started)
    leave_group()
    return 0


def _check_tokenizer(script: ScriptArguments, tokenizer: Any) -> None:
    """Compares --tokenizer with the tokenizer that the model folder has, if it has one."""
    from transformers import AutoTokenizer

    from prefkit.model.reference.policy import check_tokenizers

    try:
        own = AutoTokenizer.from_pretrained(
            script.model, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, ImportError):
        return  # the model has none: that is what --tokenizer is for
    try:
        check_tokenizers(own, tokenizer)
    except ModelError as error:
        raise ModelError(
            f"tokenizer: {script.tokenizer} gives other ids than the tokenizer of {script.model}, "
            "so the model would read other text. Leave tokenizer out, or use the model's own."
        ) from error


def _lora(script: ScriptArguments) -> Any:
    if script.adapter == "none":
        return None
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ConfigError(
            "adapter: lora needs the package peft. Install it with: pip install 'prefkit[peft]'"
        ) from error
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=script.lora_r,
        lora_alpha=script.lora_alpha,
        lora_dropout=script.lora_dropout,
        target_modules=script.lora_target_modules,
    )


def _make_trainer(script: ScriptArguments, config: Any) -> Any:
    from prefkit.train.checks.entry import check_run
    from prefkit.train.models.policy import loading_whole
    from prefkit.train.rows.pairs import prepare_dataset
    from prefkit.train.trainer import PreferenceTrainer

    # Rows first: they are cheap to check, the weights are not cheap to load.
    model_config = load_config(script.model)
    trains = script.adapter == "none"
    check_run(config, model_config=model_config, trainable_head=trains)
    tokenizer = load_tokenizer(script.tokenizer or script.model)
    if script.tokenizer and script.tokenizer != script.model:
        _check_tokenizer(script, tokenizer)
    adapter = _lora(script)
    train = prepare_dataset(
        script.train_data, tokenizer, config, model_config, "train", split=script.train_split
    )
    evaluation = None
    if script.eval_data:
        evaluation = prepare_dataset(
            script.eval_data, tokenizer, config, model_config, "eval", split=script.eval_split
        )
    with loading_whole(config):
        model = load_model(script.model, script.dtype, script.attn_implementation)
        ref_model = (
            load_model(script.ref_model, script.dtype, script.attn_implementation)
            if script.ref_model
            else None
        )
    try:
        return PreferenceTrainer(
            model,
            ref_model=ref_model,
            args=config,
            train_dataset=train,
            eval_dataset=evaluation,
            processing_class=tokenizer,
            peft_config=adapter,
        )
    except ModelError as error:
        if adapter is None or "target_modules" not in str(error):
            raise
        raise ModelError(f"lora_target_modules: {error}") from error


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def describe(objective: Any) -> str:
    """The objective in words: its beta, and what differs from its defaults."""
    parts = [f"beta {objective.beta:g}"]
    for field in fields(objective):
        value = getattr(objective, field.name)
        if field.name != "beta" and value != field.default:
            shown = "on" if value is True else f"{value:g}" if isinstance(value, float) else value
            parts.append(f"{field.name} {shown}")
    return ", ".join(parts)


def _say_plan(script: ScriptArguments, config: Any, trainer: Any) -> None:
    from prefkit.train.rows.datasets import plain
    from prefkit.train.rows.layout import describe_rows

    trainable = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    everything = sum(p.numel() for p in trainer.model.parameters())
    if trainer.reference is None:
        reference = "precomputed" if trainer.objective.needs_reference else "none"
    elif trainer.reference.adapter_owner is not None:
        reference = "the model with its adapter off"
    else:
        reference = script.ref_model or "a frozen copy of the model"
    _say(f"Model      {script.model}: {trainable:,} of {everything:,} parameters train")
    _say(f"Method     {config.method}: {describe(trainer.objective)}")
    _say(f"Reference  {reference}")
    if trainer.router is not None:
        _say(f"Routers    auxiliary loss of weight {trainer.router.coefficient:g}")
    pairs = plain(trainer.train_dataset)
    report = pairs.report
    told = report.incidents or report.unknown  # its summary was a warning when it was read
    lines = [f"{len(pairs)} pairs (see above)"] if told else report.summary().splitlines()
    for place, line in enumerate(lines):
        _say(f"{'Data' if place == 0 else '':10} {line}")
    _say(f"Rows       {describe_rows(trainer.layout, trainer.train_dataset)}")


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
    if evaluations:
        first, last = evaluations[0], evaluations[-1]
        for name in [f"eval_{name}" for name in _SHOWN if f"eval_{name}" in last]:
            before = f"{first[name]:12.4f}" if len(evaluations) > 1 else " " * 12
            print(f"{name:24}{before}{last[name]:12.4f}")
    what = "adapter" if hasattr(trainer.model, "peft_config") else "model"
    print(f"The {what} is in {folder}{os.sep}, the log in {folder / 'trainer_state.json'}.")


def _interrupted(folder: Path, step: int, argv_hint: str) -> int:
    _say(f"\nInterrupted at step {step}.")
    newest, _ = checkpoint.newest_complete(folder)
    if newest is None:
        _say("There is no complete checkpoint yet (--save_steps sets how often one is written).")
    else:
        _say(f"The newest complete checkpoint is {newest}. Go on from it with:")
        _say(f"  prefkit train {argv_hint} --resume_from_checkpoint auto".replace("  --", " --"))
    return 130
