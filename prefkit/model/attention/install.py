"""Lets a model of transformers read rows without padding.

`install_attention` gives the model an attention implementation of its own name, `prefkit_sdpa` over
`sdpa` and so on, through transformers' `AttentionInterface`. Given a stream (the keyword
`prefkit_stream`, which a model hands down to its attention like any keyword it does not know) it is
`prefkit.model.attention.compute.attend`; without one it is what it replaced, mask and all.

Which models can read such rows is found by `prefkit.model.attention.limits.why_not`.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from prefkit.data.batch.spread import ShardedStream
from prefkit.data.batch.stream import Stream
from prefkit.errors import ModelError
from prefkit.model.attention.compute.attend import attend
from prefkit.model.attention.compute.ulysses import ulysses_attention
from prefkit.model.head.fused import unwrap

PREFIX = "prefkit_"
# Masks are made once a forward, before any layer that may be recomputed later; so a flag around the
# forward is enough for them, while the stream itself must travel with the layers' arguments.
_without_mask: ContextVar[bool] = ContextVar("prefkit_without_mask", default=False)
_attended: ContextVar[set[nn.Module] | None] = ContextVar("prefkit_attended", default=None)
# What else may shape an attention, in transformers' names: sinks, biases, masks of heads.
_UNREAD = ("s_aux", "position_bias", "head_mask")


def install_attention(model: nn.Module) -> None:
    """Lets the model read streams (see `reading`); called twice it changes nothing."""
    config = text_config(model)
    base = config._attn_implementation
    if base.startswith(PREFIX):
        return
    name = PREFIX + base
    AttentionInterface.register(name, partial(_forward, base))
    AttentionMaskInterface.register(name, partial(_mask, base))
    config._attn_implementation = name


def remove_attention(model: nn.Module) -> None:
    """Takes `install_attention` back."""
    config = text_config(model)
    config._attn_implementation = config._attn_implementation.removeprefix(PREFIX)


@contextlib.contextmanager
def reading(batch: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Keyword arguments for a model's forward, which must be called inside the block.

    Args:
        batch: a `PairBatch`; only what the model reads is looked at.
    """
    names = ("input_ids", "attention_mask", "position_ids")
    inputs = {name: batch[name] for name in names if name in batch}
    stream = batch.get("stream")
    if stream is not None:
        inputs["prefkit_stream"] = stream
    token = _without_mask.set(stream is not None)
    try:
        yield {**inputs, "use_cache": False}
    finally:
        _without_mask.reset(token)


def text_config(model: nn.Module) -> Any:
    """The config of the text model inside all wrappers."""
    return unwrap(model).config.get_text_config()  # type: ignore[union-attr, operator]


def _mask(base: str, *args: Any, **kwargs: Any) -> Any:
    """No mask for a stream; otherwise the mask of the implementation that was replaced."""
    if _without_mask.get():
        return None
    return ALL_MASK_ATTENTION_FUNCTIONS[base](*args, **kwargs)


def _forward(
    base: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    prefkit_stream: Stream | ShardedStream | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """The signature of transformers' attention functions: (1, H, N, d) → (1, N, H, d), weights."""
    if prefkit_stream is None:
        inner = _implementation(base, module)
        return inner(module, query, key, value, attention_mask, **kwargs)
    if kwargs.get("dropout"):
        raise ModelError(
            "Attention dropout cannot be had in rows without padding. Leave disable_dropout on."
        )
    stream, group = _whole(prefkit_stream)
    window = kwargs.get("sliding_window")
    if window is not None and stream.longest > window:
        raise ModelError(
            f"A sequence of {stream.longest} tokens is longer than the sliding window "
            f"({window}) of {type(module).__name__}, which rows without padding do not apply."
        )
    if unread := [name for name in _UNREAD if kwargs.get(name) is not None]:
        raise ModelError(
            f"{type(module).__name__} passes {unread[0]} to its attention, which rows without "
            "padding do not read."
        )
    if (attended := _attended.get()) is not None:  # only then: it makes a GPU wait
        attended.add(module)
        if _biased(attention_mask):
            raise ModelError(
                f"{type(module).__name__} adds numbers of its own to its attention's scores, which "
                "rows without padding do not read."
            )
    query, key, value = _same_dtype(query, key, value)
    scale, softcap = kwargs.get("scaling"), kwargs.get("softcap")

    def whole_row(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return attend(query, key, value, stream, scale, softcap)

    if group is None:
        out = whole_row(query, key, value)
    else:
        out = ulysses_attention(whole_row, query, key, value, group)
    return out.transpose(1, 2).contiguous(), None


def _biased(mask: Any) -> bool:
    """Whether a mask does more than to hide, as Doge's (it may add the same to all at first)."""
    if not isinstance(mask, Tensor) or not mask.is_floating_point():
        return False
    return bool(((mask != 0) & (mask > -1e4)).any())


def _whole(row: Stream | ShardedStream) -> tuple[Stream, dist.ProcessGroup | None]:
    """The trees of the whole row, and the processes that hold pieces of it, if any."""
    return (row.stream, row.group) if isinstance(row, ShardedStream) else (row, None)


def _same_dtype(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As autocast casts the operands of scaled_dot_product_attention."""
    device = query.device.type
    if torch.is_autocast_enabled(device):
        kind = torch.get_autocast_dtype(device)
        return query.to(kind), key.to(kind), value.to(kind)
    return query, key.to(query.dtype), value.to(query.dtype)


def _implementation(base: str, module: nn.Module) -> Callable[..., Any]:
    if base != "eager":
        return ALL_ATTENTION_FUNCTIONS[base]
    # transformers keeps a model's eager attention beside its layers, under this name.
    return sys.modules[type(module).__module__].eager_attention_forward


@contextlib.contextmanager
def as_before(model: nn.Module, implementation: str | None = None) -> Iterator[None]:
    """The model with the attention that `install_attention` replaced, inside the block.

    Args:
        implementation: another one of transformers, instead of the one that was replaced.
    """
    config = text_config(model)
    name = config._attn_implementation
    config._attn_implementation = implementation or name.removeprefix(PREFIX)
    try:
        yield
    finally:
        config._attn_implementation = name


@contextlib.contextmanager
def counting() -> Iterator[set[nn.Module]]:
    """The modules that attend to a stream inside the block."""
    attended: set[nn.Module] = set()
    token = _attended.set(attended)
    try:
        yield attended
    finally:
        _attended.reset(token)
