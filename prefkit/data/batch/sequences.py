"""The sequences of a stream as padded batches, for what cannot read rows of several.

A recurrent layer, say, reads one sequence at a time, from the root of its tree to a leaf. Here the
tokens of a row become batches of whole sequences, and what was computed for them goes back to the
row. A node is read with each sequence that goes through it, and counts in the first.

Padding is at the end, where it does not change what a causal layer computes before it, and
sequences of about one length share a batch.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prefkit.data.batch.stream import Stream

_WASTE = 1.25  # tokens of a batch, padding included, as a multiple of its own


@dataclass(frozen=True, eq=False)
class SequenceBatch:
    """Sequences of a row that are read together.

    Attributes:
        places: (S, L) int64, the row's tokens; behind the end of a sequence its last one again.
        lengths: of the S sequences.
        kept: (n,) int64, the places in the flattened (S · L) whose results count.
        into: (n,) int64, the row's tokens that these are.
        rounds: what the first sequence of each tree reads, what the second reads and so on: the
            row's tokens, each at most once, and their places in the flattened (S · L).
    """

    places: Tensor
    lengths: tuple[int, ...]
    kept: Tensor
    into: Tensor
    rounds: tuple[tuple[Tensor, Tensor], ...]


def sequences_of(stream: Stream) -> Iterator[tuple[Tensor, int]]:
    """Each sequence: its tokens' places in the row, and how many of them an earlier one has had."""
    seen = torch.zeros(len(stream), dtype=torch.bool)
    for path in stream.paths():
        tokens = torch.cat([torch.arange(span.start, span.stop) for span in path])
        yield tokens, int(seen[tokens].sum())  # all before the first that is new
        seen[tokens] = True


def batches_of(
    stream: Stream,
    device: torch.device,
    share: int = 0,
    shares: int = 1,
    together: bool = False,
) -> list[SequenceBatch]:
    """The sequences of a stream in batches, longest first; made once for all layers of a forward.

    Args:
        stream: of a whole row.
        device: where the index tensors are wanted.
        share, shares: only every `shares`-th sequence by length, beginning with this one: what one
            of several processes reads of a row.
        together: all in one batch, whatever their lengths, and as long as the row's longest.
    """
    return stream.once(_batches, device, share, shares, together)


def _batches(
    stream: Stream, device: torch.device, share: int, shares: int, together: bool
) -> list[SequenceBatch]:
    found = sorted(sequences_of(stream), key=lambda one: -len(one[0]))[share::shares]
    groups: list[list[tuple[Tensor, int]]] = []
    for one in found:
        if groups and (together or _fits(groups[-1], len(one[0]))):
            groups[-1].append(one)
        else:
            groups.append([one])
    longest = stream.longest if together else 0
    return [_batch(group, device, longest) for group in groups]


def _fits(group: Sequence[tuple[Tensor, int]], length: int) -> bool:
    longest, real = len(group[0][0]), sum(len(places) for places, _ in group) + length
    return longest * (len(group) + 1) <= _WASTE * real


def _batch(group: Sequence[tuple[Tensor, int]], device: torch.device, least: int) -> SequenceBatch:
    longest = max(least, len(group[0][0]))
    places, kept, into = [], [], []
    rounds: list[list[tuple[Tensor, Tensor]]] = []
    trees: Counter[int] = Counter()  # by the first token: how many of its sequences came so far
    for row, (tokens, before) in enumerate(group):
        filler = tokens[-1:].expand(longest - len(tokens))
        places.append(torch.cat([tokens, filler]))
        kept.append(row * longest + torch.arange(before, len(tokens)))
        into.append(tokens[before:])
        nth = trees[int(tokens[0])]
        trees[int(tokens[0])] += 1
        if nth == len(rounds):
            rounds.append([])
        rounds[nth].append((tokens, row * longest + torch.arange(len(tokens))))
    lengths = tuple(len(tokens) for tokens, _ in group)
    joined = [torch.cat(part) for one in rounds for part in zip(*one, strict=True)]
    tensors = [torch.stack(places), torch.cat(kept), torch.cat(into), *joined]
    if device.type == "cuda":  # from pinned memory a copy does not wait for the GPU
        tensors = [x.pin_memory().to(device, non_blocking=True) for x in tensors]
    pairs = zip(tensors[3::2], tensors[4::2], strict=True)
    return SequenceBatch(tensors[0], lengths, tensors[1], tensors[2], tuple(pairs))
