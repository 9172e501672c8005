"""Lets a model of transformers read rows without padding.

`install_attention` gives the model an attention implementation of its own name, `prefkit_sdpa` over
`sdpa` and so on, through transformers' `AttentionInterface`. Given a stream (the keyword
`prefkit_stream`, which a model hands down to its attention like any keyword it does not know) it is
`prefkit.model.attention.compute.attend`; without one it is what it replaced, mask and all.

What such an attention may bring is known by name: how far back a layer sees comes with its mask
(`prefkit.model.attention.row_mask`), its sinks with its keywords. Anything else is refused, so that
nothing is computed without it. Which models can read such rows, and which of their modules must be
given one sequence at a time, is found by `prefkit.model.attention.limits.why_not`.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from prefkit.data.batch.stream import Reach
from prefkit.errors import ModelError
from prefkit.model.attention.by_sequence import pack_mixers, walk
from prefkit.model.attention.compute.attend import attend
from prefkit.model.attention.compute.ulysses import ulysses_attention
from prefkit.model.attention.current_row import (
    PREFIX,
    Row,
    current_row,
    in_forward,
    note_read,
    trees_and_group,
)
from prefkit.model.attention.row_mask import RowMask
from prefkit.model.head.fused import unwrap

_attended: ContextVar[set[nn.Module] | None] = ContextVar("prefkit_attended", default=None)
# Tensors that models hand to every attention, and which shape no score; the rest is refused.
_SHAPELESS = {
    "position_ids", "position_embeddings", "cache_position", "input_ids", "token_type_ids",
    "per_layer_input", "labels", "num_items_in_batch",
}  # fmt: skip


def install_attention(model: nn.Module) -> None:
    """Lets the model read streams (see `reading`) once `why_not` has found that it can.

    Called twice it changes nothing.
    """
    config, owner = text_config(model), unwrap(model)
    # The name alone may come from another model's config.
    base = config._attn_implementation.removeprefix(PREFIX)
    if "_prefkit_rows_hooks" in owner.__dict__:
        return
    name = PREFIX + base
    AttentionInterface.register(name, partial(_forward, base))
    AttentionMaskInterface.register(name, partial(_mask, base))
    config._attn_implementation = name
    owner._prefkit_reads_rows = False  # type: ignore[assignment]
    # On the body as well: it may be called without its head.
    owner._prefkit_rows_hooks = [  # type: ignore[assignment]
        part.register_forward_pre_hook(partial(_refuse_untried, owner), with_kwargs=True)
        for part in owner.modules()
        if isinstance(part, PreTrainedModel)
    ]


def set_tried(model: nn.Module, good: bool) -> None:
    """Whether the model may read streams: after its test, or for it."""
    unwrap(model)._prefkit_reads_rows = good  # type: ignore[assignment]


def _refuse_untried(
    owner: nn.Module, _: nn.Module, __: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Wrong numbers, if a layer that keeps a state read a row of several sequences."""
    if kwargs.get("prefkit_stream") is not None and not owner._prefkit_reads_rows:
        raise ModelError(
            f"{type(owner).__name__} was not tried on rows without padding, or cannot read them. "
            "Call why_not(model, longest) after install_attention(model): None means that it can."
        )


def remove_attention(model: nn.Module) -> None:
    """Takes `install_attention` back, and whatever `why_not` unpacked."""
    pack_mixers(model)
    for hook in unwrap(model).__dict__.pop("_prefkit_rows_hooks", ()):
        hook.remove()
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
    with in_forward(stream):
        yield {**inputs, "use_cache": False}


def text_config(model: nn.Module) -> Any:
    """The config of the text model inside all wrappers."""
    return unwrap(model).config.get_text_config()  # type: ignore[union-attr, operator]


def _mask(base: str, *args: Any, **kwargs: Any) -> Any:
    """A `RowMask` for a stream; otherwise the mask of the implementation that was replaced."""
    if (row := current_row.get()) is not None:
        return RowMask.of(row, base, kwargs)
    return ALL_MASK_ATTENTION_FUNCTIONS[base](*args, **kwargs)


def _forward(
    base: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | RowMask | None,
    prefkit_stream: Row | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """The signature of transformers' attention functions: (1, H, N, d) → (1, N, H, d), weights."""
    # Where a model keeps its keywords from its layers, the mask brings the row.
    row = prefkit_stream or (attention_mask.row if isinstance(attention_mask, RowMask) else None)
    if row is None:
        inner = _implementation(base, module)
        return inner(module, query, key, value, attention_mask, **kwargs)
    name = type(module).__name__
    note_read()
    reach = _reach(name, base, attention_mask, kwargs)
    if (attended := _attended.get()) is not None:
        attended.add(module)
    query, key, value = _same_dtype(query, key, value)
    scale, softcap, sinks = (kwargs.get(one) for one in ("scaling", "softcap", "s_aux"))
    stream, group = trees_and_group(row)
    if sinks is not None and group is not None:  # those of the heads that come here
        sinks = sinks.chunk(group.size())[group.rank()]

    def whole_row(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return attend(query, key, value, stream, scale, softcap, reach, sinks)

    if group is None:
        out = whole_row(query, key, value)
    else:
        out = ulysses_attention(whole_row, query, key, value, group)
    return out.transpose(1, 2).contiguous(), None


def _reach(name: str, base: str, mask: Any, given: Mapping[str, Any]) -> Reach:
    """How far back a layer sees.

    Args:
        name: of the layer's attention.
        base: of the implementation that was replaced.
        mask: what it was given as mask; None = its keyword `sliding_window` alone tells.
        given: keywords of its call.

    Raises:
        ModelError: the call brings anything that a stream's attention does not read.
    """
    if given.get("dropout"):
        raise ModelError(
            "Attention dropout cannot be had in rows without padding. Leave disable_dropout on."
        )
    if given.get("is_causal") is False:
        raise ModelError(f"{name} attends to later tokens (is_causal=False).")
    if mask is not None and not isinstance(mask, RowMask):
        raise ModelError(
            f"{name} attends under a mask that it makes itself, which rows without padding do not "
            "read."
        )
    sinks = given.get("s_aux")
    known = {*_SHAPELESS, *({"s_aux"} if sinks is None or sinks.dim() == 1 else ())}
    for key, value in given.items():
        if key not in known and any(isinstance(x, Tensor) or callable(x) for _, x in walk(value)):
            raise ModelError(
                f"{name} passes {key} to its attention, which rows without padding do not read."
            )
    window = given.get("sliding_window")
    if mask is None:
        return Reach(window)
    reach = mask.checked(name)
    if "flash" in base and window != reach.window:  # its kernels read the keyword, not the mask
        raise ModelError(
            f"{name} has a window of {window} by keyword and of {reach.window} by mask, and {base} "
            "would take the first."
        )
    return reach


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
