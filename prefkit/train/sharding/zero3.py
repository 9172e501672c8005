"""DeepSpeed's ZeRO: models loaded whole, and a reference in an engine of its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config


def engine_of_reference(model: nn.Module, plugin: Any) -> nn.Module:
    """The frozen reference in a DeepSpeed engine of its own, partitioned under ZeRO-3."""
    import deepspeed

    policy = plugin.deepspeed_config
    zero = policy.get("zero_optimization", {})
    config: dict[str, Any] = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {}}
    if zero.get("stage") == 3:
        taken = ("stage", "offload_param", "stage3_", "sub_group_size")
        config["zero_optimization"] = {
            key: value for key, value in zero.items() if key.startswith(taken) and value != "auto"
        }
    config |= {key: policy[key] for key in ("bf16", "fp16") if key in policy}
    engine, *_ = deepspeed.initialize(model=model, config=config)
    engine.eval()  # returns nothing
    return engine


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
