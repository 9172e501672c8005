"""FSDP2 units, seen from outside: which of them holds a module, and when its weights are whole.

`torch.distributed.fsdp.fully_shard` gathers the parameters of a unit before the unit's forward,
may free them after it, and gathers them again in the backward. Code that reads a parameter at any
other time finds a shard or freed memory.
"""

import copy
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel


def unit_of(model: nn.Module, module: nn.Module) -> FSDPModule | None:
    """The FSDP2 unit inside `model` that gathers the parameters of `module`, or None.

    It is the module itself or the nearest module around it that `fully_shard` was called on; in a
    group `fully_shard([norm, lm_head])` each of the group answers for all.
    """
    paths = [name for name, part in model.named_modules(remove_duplicate=False) if part is module]
    if not paths:
        return None
    names = paths[0].split(".")
    for length in range(len(names), -1, -1):
        around = model.get_submodule(".".join(names[:length]))
        if isinstance(around, FSDPModule):
            return around
    return None


def has_fsdp1(model: nn.Module) -> bool:
    """Whether the model, or a part of it, is wrapped by the first FSDP."""
    return any(isinstance(part, FullyShardedDataParallel) for part in model.modules())


def release(model: nn.Module, keep: FSDPModule | None = None) -> None:
    """Frees what the units of `model` gathered and kept after a forward without backward.

    FSDP2 leaves the root and every unit with `reshard_after_forward=False` gathered for a backward
    to come. Where none comes, that memory would be lost for good.

    Args:
        model: a model with or without units.
        keep: a unit that stays as it is.
    """
    kept = None if keep is None else keep._get_fsdp_state()  # one state for all of a group
    for part in model.modules():
        if isinstance(part, FSDPModule) and part._get_fsdp_state() is not kept:
            part.reshard()


@contextmanager
def adapter_off(owner: Any) -> Iterator[None]:
    """Switches the adapter of a PEFT model off inside the block, for forwards without gradient.

    PEFT also freezes an adapter while it is off. That is undone: FSDP2 settles at a unit's first
    forward in which format it reduces what trains there, and would find nothing that does. Nor does
    PEFT's thawing of the whole adapter afterwards last: what a user froze of it stays frozen.
    """
    with same_parts_training(owner) as as_before, owner.disable_adapter():
        as_before()
        yield


@contextmanager
def adapter_chosen(owner: Any, name: str) -> Iterator[None]:
    """Another adapter of a PEFT model in use inside the block, for forwards without gradient.

    What trains stays what it was, inside the block as well (see `adapter_off`).
    """
    before = owner.active_adapter
    with same_parts_training(owner) as as_before:
        owner.set_adapter(name)
        as_before()
        try:
            yield
        finally:
            owner.set_adapter(before)


def trained_without_adapter(owner: Any) -> list[str]:
    """Names of the parameters that train and are not the adapter's: PEFT freezes those only.

    Args:
        owner: a PEFT model; its adapter may be of any kind that can be switched off.
    """
    with same_parts_training(owner), owner.disable_adapter():
        return [name for name, value in owner.named_parameters() if value.requires_grad]


@contextmanager
def same_parts_training(owner: nn.Module) -> Iterator[Callable[[], None]]:
    """Each parameter trains or not as before, after the block and when the function is called."""
    flags = [(parameter, parameter.requires_grad) for parameter in owner.parameters()]

    def as_before() -> None:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)

    try:
        yield as_before
    finally:
        as_before()


def outliving(value: Tensor | None) -> Tensor | None:
    """A parameter as it is now, for use after the forward that gathered it.

    DeepSpeed's ZeRO-3 frees parameters when their module's forward ends, so those are copied;
    anything else is returned as it is.
    """
    return value.detach().clone() if hasattr(value, "ds_id") else value  # type: ignore[union-attr]


def only_first_loads() -> bool:
    """Whether models are loaded in the first process of each node alone; true in all alike.

    So transformers does it under FSDP with `cpu_ram_efficient_loading`.
    """
    asked = ("ACCELERATE_USE_FSDP", "FSDP_CPU_RAM_EFFICIENT_LOADING")
    on = all(os.environ.get(name, "").lower() in ("1", "true", "yes") for name in asked)
    initialised = torch.distributed.is_available() and torch.distributed.is_initialized()
    return on and initialised


def weights_elsewhere() -> bool:
    """Whether models loaded in this process hold no weights, but memory that nothing was put into:
    only the first of a node loads them, and this is another. Sharding hands the weights out.
    """
    return only_first_loads() and os.environ.get("LOCAL_RANK", "0") != "0"


def copy_without_weights(model: nn.Module) -> nn.Module:
    """A copy whose parameters take no memory (on the meta device)."""
    empty = {
        id(value): nn.Parameter(torch.empty_like(value, device="meta"), value.requires_grad)
        for value in model.parameters()
    }
    return copy.deepcopy(model, empty)
