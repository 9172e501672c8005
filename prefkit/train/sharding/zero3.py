"""DeepSpeed's ZeRO: the frozen reference in an engine of its own."""

from typing import Any

from torch import nn


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
