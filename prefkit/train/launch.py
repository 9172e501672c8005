"""From the options of a run to its trainer: paths, model, tokenizer, rows, adapter."""

from pathlib import Path
from typing import Any

from prefkit.errors import ConfigError, ModelError
from prefkit.files.atomic import check_writable
from prefkit.model.loading import check_model_folder, load_config, load_model, load_tokenizer
from prefkit.train.checkpointing import checkpoint
from prefkit.train.fields import ScriptArguments

_DATA_ENDINGS = (".json", ".jsonl", ".parquet", ".csv", ".jsonlines", ".ndjson")


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
    checkpoint.check_request(resume)


def _check_output(folder: Path, resume: Any) -> None:
    check_writable(folder, "output_dir")
    found = checkpoint.list_checkpoints(folder)
    if found and (not resume or str(resume).lower() == "false"):
        raise ConfigError(
            f"output_dir: {folder} already holds {found[0].name}. Go on from it with "
            "--resume_from_checkpoint auto, or choose another output_dir."
        )


def make_trainer(script: ScriptArguments, config: Any) -> Any:
    """The `PreferenceTrainer` of a run, ready to train; rows are read before weights are loaded.

    Raises:
        PrefkitError: a model, an adapter or rows that cannot be trained.
    """
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
    adapter = make_adapter(script)
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


def make_adapter(script: ScriptArguments) -> Any:
    """The `peft.LoraConfig` that the options ask for, or None.

    Raises:
        ConfigError: peft is not installed.
    """
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
