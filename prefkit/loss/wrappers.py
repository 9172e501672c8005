"""Operands of a loss that were taken from inside a wrapper, around its forward: noticed.

What trains one model in several processes does its work in the wrapper's own forward: DDP gets
ready there to average the gradients, FSDP and ZeRO-3 gather the weights. Whoever calls the body by
itself, and reads the weight of the head, gets a loss that looks right, and under DDP the gradients
of his process alone: the replicas drift apart without a word.

`fused_preference_loss` therefore looks at its operands. A shard is refused. A weight that belongs
to a DDP model is refused where that model has never been called, and named in a warning where its
forward is not running now (it may have been called for the hidden states). So is a head that
`prefkit.install` was called for and that no request asks.
"""

import gc
import warnings
from typing import Any
from weakref import WeakSet, ref

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.weak import WeakTensorKeyDictionary

_REMEDY = (
    "Compute the loss inside the forward of the wrapped model: prefkit.preference_loss(model, "
    "batch, objective), or model(..., prefkit_request=...) after prefkit.install(model); "
    "docs/integrate.md shows both."
)
_heads: WeakSet[nn.Module] = WeakSet()  # that requests are expected for
_replicas: Any = WeakTensorKeyDictionary()  # of weights: a reference to their DDP model, or None
_told: Any = WeakTensorKeyDictionary()  # weights that were warned of


def expect_requests(head: nn.Module) -> None:
    """From now on the weight of this head is meant to be read in requests (`prefkit.install`)."""
    _heads.add(head)


def check_operands(hidden: Tensor, weight: Tensor) -> None:
    """Refuses or names operands that were taken around the wrapper that trains them.

    Args:
        hidden: (N, D) of the policy.
        weight: (V, D) the policy's head.

    Raises:
        TypeError: a weight that is a DTensor.
        ValueError: a weight that is a shard of FSDP1 or ZeRO-3, or freed; one of a DDP model that
            has never been called, in several processes, where a gradient is wanted.
    """
    if torch.compiler.is_compiling():
        return
    _refuse_shard(weight)
    trains = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    recomputed = torch._C._current_graph_task_id() != -1  # in a backward: its forward is over
    named = isinstance(weight, nn.Parameter)  # what was made of one is not
    if trains and named and not recomputed and _processes() > 1:
        _look_at(weight)


def _processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _refuse_shard(weight: Tensor) -> None:
    if isinstance(weight, DTensor):
        raise TypeError(
            "weight is a DTensor: outside the forward of its module, FSDP2 keeps shards. "
            + _REMEDY
            + " Or gather it, with full_tensor(grad_placements=[Partial('avg')]) so that its "
            "gradient is reduced."
        )
    freed = weight.numel() > 0 and weight.untyped_storage().size() == 0
    if freed or (hasattr(weight, "ds_id") and weight.numel() == 0):
        raise ValueError(
            "weight is not in memory: outside the forward of its module, FSDP and ZeRO-3 free it. "
            + _REMEDY
        )


def _look_at(weight: Tensor) -> None:
    """Whether the wrapper of the weight, if it has one, is computing now."""
    wrapper = _wrapper_of(weight)
    if DistributedDataParallel._get_active_ddp_module() is not None:
        return
    asked = [head for head in _heads if getattr(head, "weight", None) is weight]
    where = f"in {_processes()} processes"
    if wrapper is not None:
        if not getattr(wrapper, "_lazy_init_ran", True):
            raise ValueError(
                f"The weight of this head belongs to a DistributedDataParallel model {where} whose "
                "forward has never been called: the gradients would not be averaged, and every "
                f"process would train a model of its own. {_REMEDY}"
            )
        problem = (
            f"The weight of this head belongs to a DistributedDataParallel model {where} whose "
            "forward is not running: unless the hidden states came out of that forward, the "
            "gradients are not averaged, and every process trains a model of its own."
        )
    elif asked and "_prefkit_slot" not in asked[0].__dict__:
        problem = (
            f"prefkit.install was called for the model of this head, {where}, but the loss is "
            "computed outside of its forward: unless you average the gradients yourself, every "
            "process trains a model of its own."
        )
    else:
        return
    if weight not in _told:
        _told[weight] = True
        warnings.warn(f"{problem} {_REMEDY}", RuntimeWarning, stacklevel=6)


def _wrapper_of(weight: Tensor) -> DistributedDataParallel | None:
    """The DDP model that has this parameter, if there is one, at little cost from the second call.

    Looked for once a weight, since the search goes through every object of the process; and once
    more where the model that was found is gone.
    """
    found = _replicas.get(weight, _gone)
    if found is None:
        return None
    if (wrapper := found()) is None:
        wrapper = DistributedDataParallel._get_active_ddp_module()
        if wrapper is None or not _holds(wrapper, weight):
            wrapper = _replica_of(weight)
        _replicas[weight] = None if wrapper is None else ref(wrapper)
    return wrapper


def _gone() -> None:
    """As a weak reference whose object is gone."""


def _holds(wrapper: DistributedDataParallel, weight: Tensor) -> bool:
    return any(parameter is weight for parameter in wrapper.parameters())


def _replica_of(weight: Tensor) -> DistributedDataParallel | None:
    """The DDP model that has this parameter, if there is one: a parameter does not know it."""
    # isinstance would ask proxies what they stand for.
    wrappers = [x for x in gc.get_objects() if issubclass(type(x), DistributedDataParallel)]
    return next((x for x in wrappers if _holds(x, weight)), None)
