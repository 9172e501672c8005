"""What may be passed to a trainer, told before anything is loaded or wrapped."""

from typing import Any

from prefkit.data.formats.fields.messages import TEXT_ALONE
from prefkit.errors import ConfigError, ModelError
from prefkit.model.loading import base_of
from prefkit.train.checks.synced import refuse_synced_adapter


def refuse_unusable(
    args: Any,
    compute_metrics: Any,
    model: Any,
    ref_model: Any,
    processing_class: Any,
    peft_config: Any,
    data_collator: Any = None,
) -> None:
    """Names the argument that `PreferenceTrainer` cannot work with.

    Raises:
        ModelError: a model or reference that is no causal language model of transformers.
        ConfigError: any other argument of the wrong kind, or one that cannot be served.
    """
    refuse_kinds(model, processing_class, peft_config)
    refuse_synced_adapter(args, model, peft_config)
    named = ref_model is None or isinstance(ref_model, str)
    if not named and not hasattr(getattr(ref_model, "config", None), "model_type"):
        raise ModelError(
            f"ref_model is {_kind(ref_model)}; it must be a causal language model, the name or "
            "folder of one, the folder of an adapter, or None."
        )
    if data_collator is not None and args.layout != "auto":
        raise ConfigError(
            f"layout is {args.layout!r}, but a data_collator of your own lays its rows out itself. "
            "Leave layout out, or give no data_collator."
        )
    if compute_metrics is not None and not callable(compute_metrics):
        raise ConfigError(
            f"compute_metrics is {_kind(compute_metrics)}; it must be a function of a "
            "PairPredictions that returns a dict of numbers."
        )
    if compute_metrics is not None and args.prediction_loss_only:
        raise ConfigError(
            "prediction_loss_only asks for the loss alone, and compute_metrics for more. Leave one "
            "out."
        )
    if not named and ref_model is model:
        raise ConfigError(
            "model and ref_model are the same object, so the reference would train along. Leave "
            "ref_model out: a copy of the model as it is now is made."
        )


def refuse_kinds(model: Any, processing_class: Any, peft_config: Any) -> None:
    """Names the argument of any trainer that is of another kind than it must be.

    Raises:
        ModelError: a model that is no causal language model of transformers.
        ConfigError: a tokenizer or adapter configuration that is none.
    """
    if not isinstance(model, str) and not hasattr(getattr(model, "config", None), "model_type"):
        raise ModelError(
            f"model is {_kind(model)}; it must be a causal language model of transformers, or the "
            "name or folder of one."
        )
    if processing_class is not None and not hasattr(processing_class, "pad_token_id"):
        if hasattr(processing_class, "tokenizer"):
            raise ConfigError(
                f"processing_class is {_kind(processing_class)}, which prepares more than text. "
                f"Give its tokenizer (processor.tokenizer). {TEXT_ALONE}."
            )
        raise ConfigError(
            f"processing_class is {_kind(processing_class)}; it must be a loaded tokenizer "
            "(AutoTokenizer.from_pretrained), or None for the model's own."
        )
    if peft_config is not None and not hasattr(peft_config, "peft_type"):
        raise ConfigError(
            f"peft_config is {_kind(peft_config)}; it must be a configuration of peft, such as "
            "LoraConfig(r=16, target_modules='all-linear', task_type='CAUSAL_LM')."
        )
    if isinstance(model, str) and peft_config is not None and base_of(model) is not None:
        raise ConfigError(
            f"{model} is an adapter, which goes on training, and another one is asked for "
            "(peft_config, adapter: lora). Leave that out, or merge the first (prefkit merge)."
        )


def refuse_missing_eval(args: Any, eval_dataset: Any) -> None:
    """Refuses an evaluation that has nothing to read.

    Raises:
        ConfigError: see above.
    """
    asked = "eval_strategy" if args.eval_strategy != "no" else "eval_on_start"
    if eval_dataset is None and (args.eval_strategy != "no" or args.eval_on_start):
        raise ConfigError(
            f"{asked} is on, but there is no eval_dataset. Give one, or leave {asked} out."
        )


def refuse_data_parallel(args: Any) -> None:
    """Refuses one process with several GPUs, whose batches torch's DataParallel would cut up.

    Raises:
        ConfigError: see above.
    """
    if args.n_gpu > 1:
        raise ConfigError(
            f"{args.n_gpu} GPUs are visible to one process, which would cut pairs in two "
            "(DataParallel). Start with torchrun --nproc_per_node, or set CUDA_VISIBLE_DEVICES."
        )


def _kind(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
