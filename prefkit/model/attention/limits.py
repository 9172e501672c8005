"""Why a model cannot read rows without padding: by its config, and by a test on a small row.

`rotary_limit` takes the config of the text model (`config.get_text_config()`), so that a plan,
which has no weights, and a run ask the same question. `why_not` believes no config: it compares a
small row with its sequences one by one, by numbers (`prefkit.model.attention.layout_test`).
Recurrent layers, position biases, attention to later tokens: all show there.
"""

import logging
from typing import Any

from torch import nn

from prefkit.model.attention.install import install_attention, set_tried, text_config
from prefkit.model.attention.layout_test import mismatch
from prefkit.model.attention.mixers import kinds_of_parts, unpack_alike
from prefkit.model.fsdp_units import weights_elsewhere
from prefkit.model.head.fused import unwrap
from prefkit.model.small_copy import small_copy

logger = logging.getLogger(__name__)

_TRIED_LAYERS = 8  # of a small model: the period in which hybrid models repeat their layers


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

    Modules that must read each sequence by itself are made to (`prefkit.model.attention.mixers`);
    `remove_attention` takes that back.

    Args:
        model: the policy or the reference, not yet wrapped for several processes. Where its weights
            are not here, a small model of its class is tried in its place.
        longest: tokens of the longest sequence of the data.
    """
    set_tried(model, True)  # for the test
    reason = too_long_for(model, longest) or _why_not(model, longest)
    set_tried(model, reason is None)
    return reason


def _why_not(model: nn.Module, longest: int) -> str | None:
    owner = unwrap(model)
    if getattr(owner, "get_output_embeddings", lambda: None)() is None:
        return f"{type(owner).__name__} has no head: give the causal language model as a whole"
    parameter = next(owner.parameters())
    if not (parameter.is_meta or hasattr(parameter, "ds_id") or weights_elsewhere()):
        return mismatch(model, longest)
    name = type(owner).__name__
    try:
        small = small_copy(owner, _TRIED_LAYERS, all_sparse=False)
    except Exception as error:
        logger.info("What no small model could be made of:", exc_info=error)
        return f"no weights of {name} are here, and no small model of its kind can be made"
    install_attention(small)
    set_tried(small, True)
    if missing := kinds_of_parts(owner) - kinds_of_parts(small):
        return f"no weights of {name} are here, and its {min(missing)} cannot be tried without"
    reason = mismatch(small, longest)
    unpack_alike(owner, small)
    return reason
