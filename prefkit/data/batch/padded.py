"""An ordinary padded batch, of any collator, as the flat stream of tokens that the loss reads.

    input_ids, attention_mask, labels (R, L) → positions, targets, segments, weights (T,)

Labels may be those of transformers (labels[t] is the token at t, the model shifts) or shifted
already (labels[t] is the token after t); rows may be padded on either side.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prefkit.data.batch.padded_input import (
    IGNORED,
    Order,
    check_handed_on,
    check_names,
    check_shapes,
    labels_of,
)
from prefkit.data.pair import PairBatch


def stream_of(
    batch: Mapping[str, Any], order: Order | None = None, shifted: bool = False
) -> PairBatch:
    """The batch that `preference_loss` reads, made of a padded one; on its device.

    The device is waited for once. The first token of a row has no predictor and is never scored.

    Args:
        batch: R = 2P rows of P pairs:
            input_ids: (R, L) int64 (or int32).
            attention_mask: (R, L), 1 = real token. Left or right padding.
            labels: (R, L) int64 (or int32), −100 = not scored; or, as TRL collates,
                completion_mask: (R, L), 1 = scored.
            weights: (R, L) float ≥ 0, beside the labels, optional; 0 = not scored.
            margins: (P,) float, and position_ids: (R, L) or (n, R, L), are handed on.
            What is no tensor is left out.
        order: "interleaved": row 2i is the chosen side of pair i, row 2i + 1 the rejected one.
            "concatenated": row i is chosen, row P + i rejected. None: "concatenated" for a batch
            with completion_mask, as TRL makes it; else it must be given.
        shifted: labels (and weights) are aligned with the position that predicts: labels[t] is the
            token after input_ids[t]. False: with the token itself, as transformers has it.

    Returns:
        PairBatch: what the model reads, padded on the right (so that no model needs position_ids),
        and positions, targets, segments, weights (T,), with their counts.

    Raises:
        ValueError: no input_ids or attention_mask; what is no tensor among them; an odd number of
            rows; shapes or dtypes that do not fit; a row without a scored
            token, or with one in its padding; labels that are other tokens than those of the row
            (shifted or not); weights that are negative or not finite; margins that are not finite;
            pairs whose rows have other prompts, where the other order gives each row its own;
            tensors of unknown names.
    """
    check_names(batch)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    labels, order = labels_of(batch, order, shifted)
    weights = batch.get("weights")
    check_shapes(ids, attention_mask=mask, labels=labels, weights=weights)
    check_handed_on(ids, batch.get("position_ids"), batch.get("margins"))
    real = mask.bool()
    predicts, targets, weights = _by_predictor(labels, weights, real, shifted)
    looked = _look(ids, real, labels, predicts, weights, batch.get("margins"), order, shifted)
    _refuse(looked, order, shifted)
    # A stable sort, where nonzero would wait for the device once more.
    positions = predicts.flatten().logical_not().argsort(stable=True)[: sum(looked.scored)]
    rows = positions // ids.shape[1]
    made = PairBatch(
        input_ids=ids,
        positions=positions,
        targets=targets.flatten()[positions].long(),
        segments=_segments(len(ids), order, ids.device)[rows],
        weights=weights.flatten()[positions],
        pair_index=torch.arange(len(ids) // 2, device=ids.device),
        sides_there=(len(ids) // 2, len(ids) // 2),  # a row without a scored token was refused
        num_scored=sum(looked.weighted),
        num_tokens=looked.tokens,
        text_tokens=looked.tokens,
    )
    for name in ("attention_mask", "position_ids", "margins"):
        if name in batch:
            made[name] = batch[name]
    return _padded_on_the_right(made, real, rows) if looked.left_padded else made


def _padded_on_the_right(made: PairBatch, real: Tensor, rows: Tensor) -> PairBatch:
    """The rows moved to where their padding on the left begins.

    Args:
        made: the batch; changed.
        real: (R, L) which tokens are no padding.
        rows: (T,) the row of each of its positions.
    """
    padding = real.logical_not().long().cumprod(1).sum(1)
    length = real.shape[1]
    index = (torch.arange(length, device=real.device) + padding[:, None]) % length
    for name in ("input_ids", "attention_mask", "position_ids"):
        if name in made:
            made[name] = made[name].gather(-1, index.expand_as(made[name]))
    made["positions"] = made["positions"] - padding[rows]
    return made


class _Looked(NamedTuple):
    """What one look at the device tells of a batch; lists are by row, 0 or 1 where not counts."""

    scored: list[int]
    weighted: list[int]  # of the scored tokens those with a weight
    in_padding: list[int]
    other_token: list[int]
    bad_weight: list[int]
    other_shift: bool  # shifted the other way, all labels are the tokens of their rows
    prompts_differ: bool  # in every pair
    other_order_fits: bool  # there every pair has one prompt
    bad_margin: bool
    left_padded: bool
    tokens: int


def _by_predictor(
    labels: Tensor, weights: Tensor | None, real: Tensor, shifted: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Whether each position predicts a scored token, that token, and its weight; (R, L) each."""
    if weights is None:
        weights = torch.ones_like(labels, dtype=torch.float32)
    if not shifted:
        labels, weights = _moved(labels, IGNORED), _moved(weights, 0)
    return (labels != IGNORED) & real, labels, weights.to(torch.float32)


def _moved(values: Tensor, filler: int) -> Tensor:
    """What is said of a token, said of the position before it."""
    return torch.cat([values[:, 1:], torch.full_like(values[:, :1], filler)], dim=1)


def _look(
    ids: Tensor,
    real: Tensor,
    labels: Tensor,
    predicts: Tensor,
    weights: Tensor,
    margins: Tensor | None,
    order: Order,
    shifted: bool,
) -> _Looked:
    """Everything that has to be known of the batch, in one transfer."""
    marked = labels != IGNORED
    follows = _moved(real.long(), 0).bool()  # a token of the row comes after
    # By either reading of labels: where a label is no token of its place. What lies behind the end
    # of a row is known to shifted labels alone.
    wrong = marked & real & (labels != ids), marked & real & follows & (labels != _moved(ids, 0))
    in_padding = marked & ~real & ~(follows if shifted else torch.zeros_like(real))
    bad_weight = predicts & ~((weights >= 0) & torch.isfinite(weights))
    prompts = _prompts(ids, real, predicts)
    same = [_same_prompt(prompts, way) for way in (order, _other(order))]
    weighted = predicts & (weights != 0)
    by_row = [predicts, weighted, in_padding, wrong[shifted], bad_weight]
    single = [
        ~wrong[not shifted].any(),
        ~same[0].any(),
        same[1].all(),
        ids.new_zeros(()) if margins is None else ~torch.isfinite(margins).all(),
        ~real[:, 0].all(),
        real.sum(),
    ]
    counts = torch.stack([one.sum(1) for one in by_row])
    told = torch.cat([counts.flatten(), torch.stack([one.long() for one in single])]).tolist()
    rows = len(ids)
    scored, with_weight, padded, other, bad = (told[k * rows : (k + 1) * rows] for k in range(5))
    shift, differ, fits, margin, left = map(bool, told[5 * rows : -1])
    by_batch = shift, differ, fits, margin, left
    return _Looked(scored, with_weight, padded, other, bad, *by_batch, told[-1])


def _other(order: Order) -> Order:
    return "concatenated" if order == "interleaved" else "interleaved"


def _segments(rows: int, order: Order, device: torch.device) -> Tensor:
    """(R,) the segment of each row: 2i chosen of pair i, 2i + 1 rejected."""
    numbers = torch.arange(rows, device=device)
    pairs = rows // 2
    return numbers if order == "interleaved" else numbers % pairs * 2 + numbers // pairs


def _prompts(ids: Tensor, real: Tensor, predicts: Tensor) -> Tensor:
    """(R,) a hash of the tokens up to the first that is scored, wherever the padding is."""
    before = (predicts.cumsum(1) - predicts.long() == 0) & real
    place = real.cumsum(1)
    return torch.where(before, (ids + 1) * (place * 1_000_003 + 7919), 0).sum(1)


def _same_prompt(prompts: Tensor, order: Order) -> Tensor:
    """(P,) whether the two rows of each pair begin alike."""
    segments = _segments(len(prompts), order, prompts.device)
    chosen, rejected = prompts[segments.argsort()].view(-1, 2).unbind(1)
    return chosen == rejected


def _refuse(looked: _Looked, order: Order, shifted: bool) -> None:
    if (row := _first(looked.other_token)) is not None:
        now, other = ("after it", "at it") if shifted else ("at it", "after it")
        problem = f"row {row}: a label is not the token {now}"
        if looked.other_shift:
            raise ValueError(f"{problem}, but all are the token {other}: say shifted={not shifted}")
        raise ValueError(f"{problem}. Labels are the row's own tokens, or −100 where not scored")
    if (row := _first(looked.in_padding)) is not None:
        raise ValueError(
            f"row {row}: a token is scored where attention_mask is 0. Set labels to −100 in padding"
        )
    if (row := _first(looked.bad_weight)) is not None:
        raise ValueError(f"row {row}: weights must be finite and ≥ 0")
    if (row := _first([not count for count in looked.weighted])) is not None:
        raise ValueError(
            f"row {row}: no token is scored, or all have weight 0. Leave its pair out of the batch"
        )
    if looked.bad_margin:
        raise ValueError("margins must be finite: leave pairs without one out of the batch")
    if looked.prompts_differ and looked.other_order_fits:
        raise ValueError(
            f"no two rows of a pair have one prompt, but with order='{_other(order)}' all have: "
            f"order='{order}' would compare answers to different questions"
        )


def _first(rows: Sequence[int]) -> int | None:
    return next((row for row, value in enumerate(rows) if value), None)
