"""Models on tensors without data: made, run quietly, and their bytes counted."""

import contextlib
import logging
import weakref
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

ATTENTION = "prefkit_plan"  # implementation that `register_attention` registers


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Without torch's log lines of operations that cannot run without data: the error says it."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def materialise(model: nn.Module, dtype: torch.dtype | None = None) -> None:
    """Replaces meta parameters and buffers by empty ones, under the fake mode that is on.

    Args:
        model: built on the meta device; ties between parameters are kept.
        dtype: of all floating-point parameters; None = their own.
    """
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, old in list(module._parameters.items()):
            if old is None:
                continue
            if id(old) not in made:
                kind = dtype if dtype is not None and old.is_floating_point() else old.dtype
                new = torch.empty(old.shape, dtype=kind)
                made[id(old)] = nn.Parameter(new, requires_grad=old.requires_grad)
            module._parameters[name] = made[id(old)]
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


class LiveBytes(TorchDispatchMode):
    """Bytes of the storages that operations made and that still live, and the most there were.

    Storages that were there before the mode was entered are not counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        inputs = {t.untyped_storage()._cdata for t in args if isinstance(t, Tensor)}
        tree_map_only(Tensor, lambda t: self._see(t, inputs), out)
        self.peak = max(self.peak, self.now)
        return out

    def _see(self, tensor: Tensor, inputs: set[int]) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._seen or key in inputs:  # views and in-place results are nothing new
            return
        self._seen[key] = storage.nbytes()
        self.now += storage.nbytes()
        weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.now -= self._seen.pop(key, 0)


def register_attention() -> None:
    """Makes `ATTENTION` known to transformers: causal, no mask, in the memory of a flash kernel."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(ATTENTION, _attend)
    AttentionMaskInterface.register(ATTENTION, lambda *args, **kwargs: None)


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any
) -> tuple[Tensor, None]:
    """Causal attention in the memory of a flash kernel; a softcap would change none of it."""
    if key.dtype != query.dtype:
        key, value = key.to(query.dtype), value.to(query.dtype)
    grouped = query.shape[1] != key.shape[1]
    out = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=grouped)
    return out.transpose(1, 2).contiguous(), None
