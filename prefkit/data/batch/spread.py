"""A batch whose one row is spread over the processes of a group.

The processes of a group train on the same pairs, each on its piece of the row. What is scored was
shifted before it is cut: a token belongs to the process that holds its predictor, and no process
ever needs its neighbour's first token.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import send_to_device

from prefkit.data.batch.stream import Stream
from prefkit.data.pair import PairBatch

_BY_TOKEN = ("targets", "ref_logp", "ref_hidden")
_BY_ENTRY = ("segments", "weights")


@dataclass(frozen=True, eq=False)
class ShardedStream:
    """The trees of the whole row, of which each process of the group holds an equal piece."""

    stream: Stream
    group: dist.ProcessGroup


def gather_batches(batch: PairBatch, group: dist.ProcessGroup) -> list[PairBatch]:
    """The batches of all processes of the group, in the order of their ranks, on each of them.

    Every process reads its own pairs, as without a group; they are then trained on in turn. So a
    step has as many pairs as without it, and the data loader needs to know nothing.
    """
    batches: list[Any] = [None] * group.size()
    dist.all_gather_object(batches, send_to_device(batch, "cpu"), group=group)
    return batches


def cut(batch: PairBatch, group: dist.ProcessGroup, device: torch.device) -> PairBatch:
    """This process's piece of a batch that has one row without padding.

    Args:
        batch: its row a multiple of the group's size long.
        group: piece r is that of rank r.
        device: where the piece goes.
    """
    length = len(batch["stream"]) // group.size()
    assert length * group.size() == len(batch["stream"]), "the collator rounds rows up"
    start = group.rank() * length
    mine = (batch["positions"] >= start) & (batch["positions"] < start + length)
    piece = PairBatch(**batch)
    piece["input_ids"] = batch["input_ids"][:, start : start + length]
    piece["position_ids"] = batch["position_ids"][:, start : start + length]
    entries = mine
    if "token_index" in batch:
        entries = mine[batch["token_index"]]
        piece["token_index"] = (mine.cumsum(0) - 1)[batch["token_index"][entries]]
    for names, kept in ((_BY_TOKEN, mine), (_BY_ENTRY, entries)):
        for name in names:
            if name in batch:
                piece[name] = batch[name][kept]  # type: ignore[literal-required]
    piece["positions"] = batch["positions"][mine] - start
    piece["num_scored"] = _scored(piece)
    piece["num_tokens"] = min(max(batch["num_tokens"] - start, 0), length)
    piece["stream"] = ShardedStream(batch["stream"], group)
    return send_to_device(piece, device)


def _scored(piece: PairBatch) -> int:
    """How many tokens of a piece have a weight."""
    weighted = piece["weights"] != 0
    if "token_index" in piece:
        return len(piece["token_index"][weighted].unique())
    return int(weighted.sum())
