"""How long a sequence may be before a model treats it otherwise in a row of several; by the config.

Each takes the config of the text model (`config.get_text_config()`), so that a plan, which has no
weights, and a run ask the same question.
"""

from typing import Any


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
