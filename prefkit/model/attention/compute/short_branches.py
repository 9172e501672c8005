"""Short branches of a tree in one call: their queries end to end, the union of their keys, a mask.

A step tree has hundreds of branches of forty tokens. Each by itself would take two calls, a merge,
and copies of the keys of its whole path, once a layer forwards and twice backwards. Branches that
follow each other in the row see nearly the same path, so that one call for several of them reads it
once; what a query must not see, a small mask hides. How many share a call is decided by cost.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from prefkit.data.batch.stream import EVERYTHING, Attend, Reach, Span, Stream

# What one product of a query and a key costs is the unit. A key is copied for its query heads and
# gets a gradient; a call takes as long as some keys. By arithmetic, for 9 heads of 64 numbers on
# two CPUs; the exact values hardly matter, since whole calls are compared.
KEY, CALL = 32, 4096
MOST = 512  # queries of a masked call
AREA = 1 << 21  # numbers of a mask: 8 MB in fp32


class Shared(NamedTuple):
    """Attentions that are computed together.

    Attributes:
        queries: of all of them, end to end.
        keys: spans of all their keys, their own tokens among them.
        alone: the only one of them, where it is computed without a mask; None = under a mask.
    """

    queries: Span
    keys: tuple[Span, ...]
    alone: Attend | None


def together(stream: Stream, reach: Reach = EVERYTHING) -> list[Shared]:
    """Which attentions of a row share a call, in the order of the row."""
    found: list[Shared] = []
    cost = 0
    for one in stream.attends(reach):
        new, own = _single(one, reach.window)
        if found and (joined := _joined(found[-1], new)) is not None:
            together_cost = masked_cost(joined)
            if together_cost <= cost + own:
                found[-1], cost = joined, together_cost
                continue
        found.append(new)
        cost = own
    return found


def masked_cost(shared: Shared) -> int:
    """Of one masked call."""
    keys = sum(map(len, shared.keys))
    return len(shared.queries) * keys + KEY * keys + CALL


def _single(one: Attend, window: int | None) -> tuple[Shared, int]:
    """An attention by itself, in the cheaper way, and what that costs."""
    queries, before = len(one.queries), one.before
    if window is not None and queries >= window:  # in blocks of its own
        return Shared(one.queries, _union([*one.context, one.queries]), one), queries * window
    plain = queries * (queries // 2 + before) + KEY * (queries + before)
    plain += CALL * (2 if one.context else 1)
    keys = _union([*one.context, one.queries])
    shared = Shared(one.queries, keys, None)
    fits = one.context and queries <= MOST and queries * one.key_count <= AREA
    if fits and (masked := masked_cost(shared)) < plain:
        return shared, masked
    return Shared(one.queries, keys, one), plain


def _joined(first: Shared, second: Shared) -> Shared | None:
    """Both in one masked call; None where that is too large."""
    queries = Span(first.queries.start, second.queries.stop)
    if len(queries) > MOST:
        return None
    keys = _union([*first.keys, *second.keys])
    if len(queries) * sum(map(len, keys)) > AREA:
        return None
    return Shared(queries, keys, None)


def _union(spans: list[Span]) -> tuple[Span, ...]:
    """The tokens of all spans, each once, in the order of the row."""
    merged: list[Span] = []
    for span in sorted(spans):
        if merged and span.start <= merged[-1].stop:
            merged[-1] = Span(merged[-1].start, max(merged[-1].stop, span.stop))
        else:
            merged.append(span)
    return tuple(merged)


def tree_mask(
    stream: Stream, queries: Span, keys: tuple[Span, ...], reach: Reach, dtype: torch.dtype
) -> Tensor:
    """(queries, keys) 0 where a query sees a key, −inf elsewhere.

    Args:
        stream: of the row.
        queries, keys: their places in it.
        reach: how far back a token sees.
        dtype: of the result.
    """
    q = torch.arange(queries.start, queries.stop)[:, None]
    k = torch.cat([torch.arange(span.start, span.stop) for span in keys])
    seen = (k <= q) & (q < stream.ends_of_tokens[k])
    if reach.window is not None:
        seen &= stream.positions[q] - stream.positions[k] < reach.window
    if reach.chunk is not None:
        chunks = stream.positions // reach.chunk
        seen &= chunks[q] == chunks[k]
    return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, -torch.inf)
