"""Token weights as rows carry them: by token, by character span, or as cDPO's scored files.

Reading checks shape and values (finite, ≥ 0, lengths that agree). Whether the weights belong to
the tokens of this tokenizer is checked where the tokens are made (tokens/weights.py).
"""

import math
from itertools import pairwise
from typing import Any

from prefkit.data.formats.fields.row import Row
from prefkit.data.pair import TokenWeights

Spans = tuple[tuple[int, int, float], ...]
LOST = ("\ufffd", "<unk>", "[UNK]")  # what stands in decoded text for characters it lost
SHAPES = (
    'Write a list of floats, [[token, weight], …], or {"ids": […], "weights": […]}, '
    "one entry a response token."
)


def read_token_weights(row: Row, field: str) -> TokenWeights | None:
    """`chosen_weights` / `rejected_weights`; None where the row has none.

    Raises:
        RowError: another shape, lengths that differ, a weight that is negative, NaN or infinite.
    """
    value = row.get(field)
    if value is None:
        return None
    tokens: list[Any] | None = None
    if isinstance(value, dict):
        weights, tokens = _from_dict(row, value, field)
    elif isinstance(value, list) and value and all(_is_couple(entry) for entry in value):
        tokens, weights = [entry[0] for entry in value], [entry[1] for entry in value]
    else:
        weights = value
    if not isinstance(weights, list) or not weights:
        raise row.error(field, "is empty or no list of weights", SHAPES)
    return TokenWeights(
        weights=tuple(_weight(row, w, f"{field}[{i}]") for i, w in enumerate(weights)),
        tokens=None if tokens is None else _tokens(row, tokens, field),
    )


def read_spans(row: Row, field: str, text: str) -> Spans:
    """`chosen_spans` / `rejected_spans`: `[start_char, end_char, weight]` in the response's text.

    Raises:
        RowError: a span that is malformed, outside the text, empty, or overlaps another.
    """
    value = row.get(field)
    if value is None:
        return ()
    remedy = "Write a list of [start_char, end_char, weight], 0 ≤ start < end ≤ length of the text."
    if not isinstance(value, list):
        raise row.error(field, f"is a {type(value).__name__}", remedy)
    spans = []
    for place, span in enumerate(value):
        name = f"{field}[{place}]"
        if not isinstance(span, list | tuple) or len(span) != 3:
            raise row.error(name, f"is {span!r}, not a triple", remedy)
        start, end = (_position(row, bound, name, remedy) for bound in span[:2])
        if not 0 <= start < end <= len(text):
            problem = f"covers [{start}, {end}) of a text of {len(text)} characters"
            raise row.error(name, problem, remedy)
        spans.append((start, end, _weight(row, span[2], name)))
    spans.sort()
    for before, after in pairwise(spans):
        if after[0] < before[1]:
            problem = f"the spans {list(before)} and {list(after)} overlap"
            raise row.error(field, problem, "Give each character at most one weight.")
    return tuple(spans)


def read_scored_side(row: Row, side: str, response: str) -> TokenWeights:
    """1 − s_t for the tokens of one response of a cDPO scored file (arXiv 2411.19943, §4).

    `prob_result[side]` holds `ce_prob`, s_t for every token but the first of prompt + response,
    `response_start_idx`, how many of them speak of the prompt, and the response's `text`.

    Raises:
        RowError: a part is missing, a score outside [0, 1], or scores of another response.
    """
    field = f"prob_result.{side}"
    result = row.require("prob_result")
    entry = result.get(side) if isinstance(result, dict) else None
    remedy = "Score the row again: each side needs ce_prob, response_start_idx and text."
    if not isinstance(entry, dict):
        raise row.error(field, "is missing", remedy)
    scores, start = entry.get("ce_prob"), entry.get("response_start_idx")
    if not isinstance(scores, list) or not scores:
        raise row.error(f"{field}.ce_prob", "is missing, empty or no list", remedy)
    if isinstance(start, bool) or not isinstance(start, int) or not 0 <= start < len(scores):
        problem = f"is {start!r} for {len(scores)} scores"
        raise row.error(f"{field}.response_start_idx", problem, remedy)
    _check_scored_text(row, entry.get("text"), response, field)
    weights = tuple(
        1.0 - _score(row, score, f"{field}.ce_prob[{i}]") for i, score in enumerate(scores)
    )
    return TokenWeights(weights=weights, context=start)


def _check_scored_text(row: Row, text: Any, response: str, field: str) -> None:
    """The scored text is decoded tokens: compare without white space, if nothing got lost."""
    if not isinstance(text, str) or any(mark in text for mark in LOST):
        return
    squeezed, scored = "".join(response.split()), "".join(text.split())
    if not scored or not squeezed.endswith(scored):
        raise row.error(
            f"{field}.text",
            "is not the response it stands for, so the scores belong to other tokens",
            "Score the row again.",
        )


def _from_dict(row: Row, value: dict[str, Any], field: str) -> tuple[Any, Any]:
    tokens = value.get("ids", value.get("tokens"))
    weights = value.get("weights")
    if not isinstance(weights, list) or not isinstance(tokens, list):
        raise row.error(field, f"has the keys {sorted(value)}", SHAPES)
    if len(tokens) != len(weights):
        problem = f"has {len(tokens)} tokens but {len(weights)} weights"
        raise row.error(field, problem, "Give each token one weight.")
    return weights, tokens


def _is_couple(entry: Any) -> bool:
    return isinstance(entry, list | tuple) and len(entry) == 2


def _tokens(row: Row, tokens: list[Any], field: str) -> tuple[int | str, ...]:
    tokens = [int(t) if isinstance(t, float) and t.is_integer() else t for t in tokens]
    for place, token in enumerate(tokens):
        if isinstance(token, bool) or not isinstance(token, int | str):
            problem = f"has {token!r} where a token should be"
            raise row.error(f"{field}[{place}]", problem, "Write token ids or token strings.")
    return tuple(tokens)


def _weight(row: Row, value: Any, field: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise row.error(field, f"is {value!r}, not a number", "Write a finite weight ≥ 0.")
    if not math.isfinite(value) or value < 0:
        raise row.error(field, f"is {value}", "Write a finite weight ≥ 0.")
    return float(value)


def _score(row: Row, value: Any, field: str) -> float:
    score = _weight(row, value, field)
    if score > 1 + 1e-3:
        raise row.error(field, f"is {score}, not a probability", "Score the row again.")
    return min(score, 1.0)


def _position(row: Row, value: Any, field: str, remedy: str) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a column [start, end, weight] becomes all floats in a table
    if isinstance(value, bool) or not isinstance(value, int):
        raise row.error(field, f"has the position {value!r}", remedy)
    return value
