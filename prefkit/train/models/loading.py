"""Models that a trainer is given by name: loaded as its options say, adapters on their base."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

from prefkit.model.adapters import put_adapter
from prefkit.model.head.fused import unwrap
from prefkit.model.loading import base_of, base_revision, load_model


def keywords_of(args: Any, quantization_config: Any = None) -> dict[str, Any]:
    """What `load_model` is given beside a name.

    Args:
        args: `model_init_kwargs` and `trust_remote_code` are read; without a dtype there models are
            loaded in float32.
        quantization_config: of transformers, or None.
    """
    found = {"dtype": "float32", **(args.model_init_kwargs or {})}
    if args.trust_remote_code:
        found["trust_remote_code"] = True
    if quantization_config is not None:
        found["quantization_config"] = quantization_config
        # A quantised model stays where it is loaded; by itself each process would take the same.
        found.setdefault("device_map", {"": args.device})
    return found


def load_named(name: str, args: Any, keywords: dict[str, Any], trainable: bool = False) -> Any:
    """The model of a name, whole in every process.

    Args:
        name: folder or Hub name of a model, or folder of an adapter: its base is loaded with the
            adapter on it.
        args: of the run.
        keywords: of `keywords_of`.
        trainable: whether an adapter goes on training.

    Raises:
        ModelError, ConfigError: see `load_model` and `put_adapter`.
    """
    base = base_of(name)
    with loading_whole(args):
        if base is None:
            return load_model(name, **keywords)
        revision = keywords.get("revision") or base_revision(name)
        model = load_model(base, **{**keywords, "revision": revision})
        adapted = put_adapter(model, name, trainable=trainable)
        for config in adapted.peft_config.values():
            config.revision = revision  # of what it is on now, for whoever loads it again
        return adapted


def name_of(model: Any) -> str:
    """The name or folder that a model was loaded from, without its adapter; "" for none."""
    config: Any = unwrap(model).config
    return str(config.name_or_path)


@contextmanager
def loading_whole(args: Any) -> Iterator[None]:
    """Models loaded inside the block are whole in every process, under ZeRO-3 as well.

    Partitioned while they are loaded, as transformers does as soon as the options ask for ZeRO-3,
    neither the head nor an adapter could be proved, nor the reference be copied.
    """
    config = getattr(args, "hf_deepspeed_config", None)
    if config is None:
        yield
        return
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        set_hf_deepspeed_config(config)
