"""From the options of a run to its trainer: paths, model, tokenizer, rows, adapter."""

from pathlib import Path
from typing import Any

from prefkit.errors import ConfigError, ModelError
from prefkit.files.atomic import check_writable
from prefkit.model.loading import (
    base_of,
    base_revision,
    check_model_folder,
    load_config,
    load_tokenizer,
)
from prefkit.train.checkpointing import checkpoint
from prefkit.train.fields import ScriptArguments
from prefkit.train.options import LOADED_BY

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
            check_model_folder(option, name, adapters=True)
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
    from prefkit.train.checks.arguments import refuse_kinds
    from prefkit.train.checks.entry import check_run
    from prefkit.train.rows.pairs import prepare_dataset
    from prefkit.train.trainer import PreferenceTrainer

    # Rows first: they are cheap to check, the weights are not cheap to load.
    adapter, quantised = make_adapter(script), make_quantisation(script, config)
    refuse_kinds(script.model, None, adapter)
    revision = script.revision or base_revision(script.model)
    own = {"revision": revision, "trust_remote_code": config.trust_remote_code}
    base = base_of(script.model)
    model_config = load_config(base or script.model, **own)
    check_run(config, model_config=model_config, trainable_head=adapter is None and base is None)
    if script.tokenizer and script.tokenizer != script.model:
        tokenizer = load_tokenizer(script.tokenizer, **{**own, "revision": None})
        _check_tokenizer(script, tokenizer, own)
    else:
        tokenizer = load_tokenizer(script.model, **own)
    train = prepare_dataset(
        script.train_data, tokenizer, config, model_config, "train", split=script.train_split
    )
    evaluation = None
    if script.eval_data:
        evaluation = prepare_dataset(
            script.eval_data, tokenizer, config, model_config, "eval", split=script.eval_split
        )
    loaded = {name: getattr(script, name) for name in LOADED_BY if getattr(script, name)}
    config.model_init_kwargs = {**(config.model_init_kwargs or {}), **loaded}
    try:
        return PreferenceTrainer(
            script.model,
            ref_model=script.ref_model,
            args=config,
            train_dataset=train,
            eval_dataset=evaluation,
            processing_class=tokenizer,
            quantization_config=quantised,
            peft_config=adapter,
        )
    except ModelError as error:
        names = ("target_modules", "modules_to_save", "target_parameters")
        name = next((name for name in names if name in str(error)), None)
        if adapter is None or name is None:
            raise
        raise ModelError(f"lora_{name}: {error}") from error


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
        target_parameters=script.lora_target_parameters,
        modules_to_save=script.lora_modules_to_save,
        use_dora=script.use_dora,
        use_rslora=script.use_rslora,
    )


def make_quantisation(script: ScriptArguments, config: Any) -> Any:
    """The `transformers.BitsAndBytesConfig` that the options ask for, or None.

    transformers leaves the head out of what it quantises, as long as no list says otherwise.

    Raises:
        ConfigError: bitsandbytes is not installed.
    """
    if not (script.load_in_4bit or script.load_in_8bit):
        return None
    from transformers import BitsAndBytesConfig

    from prefkit.train.checks.machine import need_package

    bits = "load_in_4bit" if script.load_in_4bit else "load_in_8bit"
    need_package("bitsandbytes", bits, "prefkit[qlora]")
    if script.load_in_8bit:
        return BitsAndBytesConfig(load_in_8bit=True)
    weights = None if script.dtype == "auto" else script.dtype
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=script.bnb_4bit_quant_type,
        bnb_4bit_compute_dtype=script.bnb_4bit_compute_dtype
        or ("bfloat16" if config.bf16 else weights),
        bnb_4bit_use_double_quant=script.use_bnb_nested_quant,
    )


def _check_tokenizer(script: ScriptArguments, tokenizer: Any, own: dict[str, Any]) -> None:
    """Compares --tokenizer with the tokenizer that the model folder has, if it has one."""
    from transformers import AutoTokenizer

    from prefkit.model.reference.policy import check_tokenizers

    try:
        models = AutoTokenizer.from_pretrained(script.model, local_files_only=True, **own)
    except (OSError, ValueError, KeyError, ImportError):
        return  # the model has none: that is what --tokenizer is for
    try:
        check_tokenizers(models, tokenizer)
    except ModelError as error:
        raise ModelError(
            f"tokenizer: {script.tokenizer} gives other ids than the tokenizer of {script.model}, "
            "so the model would read other text. Leave tokenizer out, or use the model's own."
        ) from error
