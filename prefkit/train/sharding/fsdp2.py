"""Sharding a run over processes: FSDP2 through accelerate's own options, with what it leaves open.

The options are the Trainer's and accelerate's (`fsdp`, `fsdp_config`, the FSDP_* variables that
`accelerate launch` sets); the policy is sharded by accelerate when training begins. Added here:

- the frozen reference, sharded per layer as the policy is (only at its root it would be gathered
  whole in every forward);
- FSDP2 on a CPU. accelerate chooses it only where it sees an accelerator and falls back to
  replicas (DDP) without a word; its own functions run on a CPU just as well;
- gradients reduced in fp32 and results that keep their precision under bf16: accelerate's policy
  rounds both to bf16, the loss and its metrics included.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import PartialState
from accelerate.utils import (
    DistributedType,
    FullyShardedDataParallelPlugin,
    broadcast_object_list,
)
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from prefkit.errors import ConfigError
from prefkit.train.checks.sharding import asks_for_fsdp
from prefkit.train.models.run_models import RunModels
from prefkit.train.sharding.zero3 import engine_of_reference


def reduce_every_batch(args: Any) -> None:
    """Gradients are sharded after every batch of an accumulation window, unless told otherwise.

    Kept whole until the last one, as accelerate does to save communication, they would take the
    memory of a whole model in every process. Called before the accelerator is made.
    """
    if not asks_for_fsdp(args):
        return
    config = args.accelerator_config
    given = config.gradient_accumulation_kwargs or {}
    config.gradient_accumulation_kwargs = {"sync_each_batch": True, **given}


def complete_fsdp2(accelerator: Accelerator, args: Any, models: RunModels) -> bool:
    """Makes FSDP2, where it was asked for, what comes out of the accelerator's own set-up.

    Args:
        accelerator: as Trainer made it; its state is changed.
        args: of the run.
        models: take over what only a process that holds weights could find out.

    Returns:
        Whether FSDP was asked for, and so is in use.

    Raises:
        ConfigError: accelerate did not take up the FSDP settings.
    """
    if not asks_for_fsdp(args):
        return False
    if accelerator.distributed_type is DistributedType.MULTI_CPU:
        _shard_on_cpu(accelerator, args.fsdp_plugin_args or {})
    if not accelerator.is_fsdp2:
        kind = accelerator.distributed_type.value
        raise ConfigError(
            f"fsdp: accelerate set up {kind} instead of FSDP2, which would train a whole copy "
            "of the model in each process. Start one process a device with torchrun or "
            "accelerate launch, or leave fsdp out."
        )
    plugin = accelerator.state.fsdp_plugin
    _keep_precision(plugin)
    if plugin.cpu_ram_efficient_loading:
        _believe_the_first_process(models)
    return True


def _shard_on_cpu(accelerator: Accelerator, given: dict[str, Any]) -> None:
    """The state that accelerate reaches by itself where it sees an accelerator.

    Args:
        accelerator: its state is changed.
        given: of `fsdp_config`; else the plugin reads the FSDP_* variables, as accelerate does.
    """
    plugin = FullyShardedDataParallelPlugin(**given)
    state = accelerator.state
    if state.mixed_precision != "no":
        plugin.set_mixed_precision(state.mixed_precision)
    state.fsdp_plugin = plugin
    state.distributed_type = DistributedType.FSDP
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP


def _believe_the_first_process(models: RunModels) -> None:
    """Takes over what only a process that has the weights could find out of them."""
    heads = [models.head] if models.reference is None else [models.head, models.reference.head]
    found: list[Any] = [models.reference_id, [head.transform for head in heads]]
    broadcast_object_list(found, from_process=0)
    models.reference_id, transforms = found
    models.head = replace(models.head, transform=transforms[0])
    if models.reference is not None:
        models.reference.head = replace(models.reference.head, transform=transforms[1])


def _keep_precision(plugin: FullyShardedDataParallelPlugin) -> None:
    """bf16 for the matrices, fp32 for sums of gradients over processes and for results.

    The model's forward returns the loss and its metrics here: rounding the model's output, as
    accelerate asks for, would round those.
    """
    policy = plugin.mixed_precision_policy
    if policy is not None:
        plugin.mixed_precision_policy = replace(
            policy, reduce_dtype=torch.float32, output_dtype=None
        )


def uses_fsdp2(accelerator: Accelerator) -> bool:
    """Whether the policy is, or will be, sharded by FSDP2."""
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    return bool(plugin is not None and accelerator.is_fsdp2)


def shard_reference(accelerator: Accelerator, model: nn.Module) -> nn.Module:
    """The frozen reference, ready to run beside the policy: sharded per layer as that is."""
    if accelerator.distributed_type is DistributedType.DEEPSPEED:
        return engine_of_reference(model, accelerator.state.deepspeed_plugin)
    if not uses_fsdp2(accelerator):
        return accelerator.prepare_model(model, evaluation_mode=True)
    with _own_wrapping(accelerator):
        return fsdp2_prepare_model(accelerator, model)


def whole_weights(model: Any) -> dict[str, Tensor]:
    """A sharded model's weights, whole, on the CPU of the first process; {} on the others.

    Of an adapter only what trains. Every process must call it.
    """
    options = StateDictOptions(
        full_state_dict=True,
        cpu_offload=True,
        ignore_frozen_params=hasattr(model, "peft_config"),
    )
    return get_model_state_dict(model, options=options)  # type: ignore[return-value]


@contextmanager
def _own_wrapping(accelerator: Any) -> Iterator[None]:
    """A copy of the plugin inside the block: it settles which layers to wrap at its first model."""
    before = accelerator.state.fsdp_plugin
    accelerator.state.fsdp_plugin = copy.copy(before)
    try:
        yield
    finally:
        accelerator.state.fsdp_plugin = before
