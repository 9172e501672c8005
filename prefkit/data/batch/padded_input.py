"""What a padded batch may hold, as far as names, shapes and dtypes tell: no device is asked."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

Order = Literal["interleaved", "concatenated"]
IGNORED = -100  # what transformers, TRL and torch call a label that does not count
KNOWN = {
    "input_ids", "attention_mask", "position_ids", "labels", "completion_mask", "weights", "margins"
}  # fmt: skip


def check_names(batch: Mapping[str, Any]) -> None:
    """Raises ValueError for what is missing, no tensor, or would not be read."""
    if "chosen_input_ids" in batch:
        raise ValueError(
            "the batch has chosen_input_ids and rejected_input_ids, as TRL made them before 0.20: "
            "make one batch of both, chosen rows first, with order='concatenated'"
        )
    for name in ("input_ids", "attention_mask"):
        if name not in batch:
            hint = ", of ones where nothing is padded" if name == "attention_mask" else ""
            raise ValueError(f"the batch has no {name}: give it as (R, L){hint}")
    device = getattr(batch["input_ids"], "device", None)
    for name in sorted(KNOWN & set(batch)):
        if not isinstance(batch[name], Tensor):
            kind = type(batch[name]).__name__
            raise ValueError(f"{name} must be a tensor, got a {kind}: torch.as_tensor makes one")
        if batch[name].device != device:
            raise ValueError(f"{name} is on {batch[name].device}, and input_ids on {device}")
    if "ref_chosen_logps" in batch:
        raise ValueError(
            "the batch has ref_chosen_logps, sums over responses, while the reference is read "
            "token by token: leave them out (precompute_ref_log_probs=False in TRL) and give the "
            "reference to the loss, or cache prefkit.reference_logp"
        )
    unknown = [k for k, v in batch.items() if isinstance(v, Tensor) and k not in KNOWN]
    if unknown:
        raise ValueError(
            f"stream_of does not know {', '.join(unknown)}: the model would not get it. If it is "
            "not needed, such as the number of a row, leave it out: stream_of({k: v for k, v in "
            f"batch.items() if k not in {tuple(unknown)}}}, …). Known are "
            f"{', '.join(sorted(KNOWN))}"
        )


def labels_of(batch: Mapping[str, Any], order: Order | None, shifted: bool) -> tuple[Tensor, Order]:
    """(R, L) labels, IGNORED where not scored, and how the rows lie; see `stream_of`.

    Raises:
        ValueError: none or two that say what is scored; an order that is none, or not said.
    """
    has_mask = "completion_mask" in batch
    if has_mask == ("labels" in batch):
        raise ValueError("give labels or completion_mask, which say what is scored: one of the two")
    if order not in ("interleaved", "concatenated", None):
        raise ValueError(f"order must be 'interleaved' or 'concatenated', got {order!r}")
    if order is None and not has_mask:
        raise ValueError(
            "say how the rows lie: order='interleaved' (chosen, rejected, chosen, …) or "
            "order='concatenated' (all chosen, then all rejected)"
        )
    if not has_mask:
        return batch["labels"], order or "interleaved"
    if shifted:
        raise ValueError("completion_mask marks the tokens themselves: leave shifted out")
    scored, ids = batch["completion_mask"], batch["input_ids"]
    check_shapes(ids, completion_mask=scored)
    return torch.where(scored.bool(), ids, IGNORED), order or "concatenated"


def check_shapes(ids: Tensor, **beside: Tensor | None) -> None:
    """Raises ValueError for ids that are no pairs of rows, and for what is not of their shape."""
    for name, value in {"input_ids": ids, "labels": beside.get("labels")}.items():
        if value is not None and (value.is_floating_point() or value.dtype == torch.bool):
            raise ValueError(f"{name} must be integers, token ids; got {value.dtype}")
    if ids.dim() != 2 or len(ids) % 2 or not len(ids):
        raise ValueError(
            f"input_ids must be (2P, L), a chosen and a rejected row for each of P pairs; got "
            f"{tuple(ids.shape)}"
        )
    for name, value in beside.items():
        if value is not None and value.shape != ids.shape:
            raise ValueError(
                f"{name} must have the shape of input_ids, {tuple(ids.shape)}, got "
                f"{tuple(value.shape)}"
            )


def check_handed_on(ids: Tensor, position_ids: Tensor | None, margins: Tensor | None) -> None:
    """Raises ValueError for shapes of what the model or the loss gets as it is."""
    if position_ids is not None and position_ids.shape[-2:] != ids.shape:
        raise ValueError(
            f"position_ids must be {tuple(ids.shape)}, the shape of input_ids, or have one more "
            f"dimension before it; got {tuple(position_ids.shape)}"
        )
    pairs = len(ids) // 2
    if margins is not None and (margins.shape != (pairs,) or not margins.is_floating_point()):
        raise ValueError(
            f"margins must be ({pairs},) floats, one a pair; got {tuple(margins.shape)}, "
            f"{margins.dtype}"
        )
