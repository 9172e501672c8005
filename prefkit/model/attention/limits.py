"""Why a model cannot read rows without padding: by its config, and by a test on a small row.

`window_of` and `rotary_limit` take the config of the text model (`config.get_text_config()`), so
that a plan, which has no weights, and a run ask the same question. `why_not` believes no config: it
compares a small row with its sequences one by one, by numbers
(`prefkit.model.attention.layout_test`). State-space layers, position biases, models that drop
unknown keywords: all show there.
"""

from typing import Any

from torch import nn

from prefkit.model.attention.install import text_config
from prefkit.model.attention.layout_test import mismatch
from prefkit.model.fsdp_units import weights_elsewhere
from prefkit.model.head.fused import unwrap


def window_of(config: Any) -> int | None:
    """Tokens of the narrowest window or chunk that any layer attends within, or None.

    A layer that chooses a number of blocks to attend to (MiniMax-M3) sees everything in sequences
    of no more tokens than that, and only in those.
    """
    kinds = getattr(config, "layer_types", None)
    found = []
    for kind, name in (
        ("sliding_attention", "sliding_window"),
        ("chunked_attention", "attention_chunk_size"),
    ):
        size = getattr(config, name, None)
        off = name == "sliding_window" and getattr(config, "use_sliding_window", True) is False
        if size and not off and (kinds is None or kind in kinds):
            found.append(int(size))
    if kinds is not None and "minimax_m3_sparse" in kinds:
        found.append(int(config.index_block_size * config.index_topk_blocks))
    return min(found, default=None)


def rotary_limit(config: Any) -> int | None:
    """Tokens up to which positions are rotated alike whatever else is in the row, or None.

    longrope and dynamic scaling choose their frequencies by the largest position of the whole
    input: beyond this length a sequence would depend on its neighbours in the row.
    """
    given = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    limits = []
    for one in [given, *given.values()]:  # by kind of layer in some models
        kind = one.get("rope_type", one.get("type")) if isinstance(one, dict) else None
        if kind in ("longrope", "dynamic"):
            whole = getattr(config, "max_position_embeddings", 0)
            original = one.get("original_max_position_embeddings")
            original = original or getattr(config, "original_max_position_embeddings", None)
            limits.append(int(original or whole))
    return min(limits, default=None)


def too_long_for(model: nn.Module, longest: int) -> str | None:
    """Why sequences of this length cannot lie in rows without padding, in words, or None."""
    name = type(unwrap(model)).__name__
    config = text_config(model)
    limit = rotary_limit(config)
    if limit is not None and longest > limit:
        return (
            f"{name} rotates positions by the length of the whole row from {limit} tokens on, and "
            f"a sequence has {longest}"
        )
    return None


def why_not(model: nn.Module, longest: int) -> str | None:
    """Why a model cannot read streams, in words, or None; `install_attention` must have run.

    Args:
        model: the policy or the reference, not yet wrapped for several processes.
        longest: tokens of the longest sequence of the data.
    """
    if reason := too_long_for(model, longest):
        return reason
    parameter = next(unwrap(model).parameters())
    if parameter.is_meta or hasattr(parameter, "ds_id") or weights_elsewhere():
        return None  # nothing to compute with yet: the attention itself refuses what it sees
    return mismatch(model, longest)
