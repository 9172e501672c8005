"""Pairs, models and losses of loops, and the loss of a batch by its definition."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from prefkit.data.batch.padded import stream_of
from prefkit.loss.objectives import DPO, TDPO, Objective, SimPO
from tests.train.trainer_cases import VOCAB

IDS = torch.randint(1, 250, (8, 9), generator=torch.Generator().manual_seed(5))  # four pairs
IDS[1::2, :4] = IDS[::2, :4]  # with a prompt of four tokens each
LENGTHS = (9, 7, 8, 9, 6, 9, 9, 8)
OBJECTIVES: dict[str, Objective] = {
    "dpo": DPO(beta=0.5),
    "tdpo": TDPO(beta=0.5, alpha=0.7),
    "simpo": SimPO(beta=2.0),
}


def padded(pairs: list[int]) -> dict[str, Tensor]:
    """Rows of pairs, padded as most collators do: chosen and rejected in turn."""
    rows = [row for pair in pairs for row in (2 * pair, 2 * pair + 1)]
    ids, lengths = IDS[rows], torch.tensor(LENGTHS)[rows]
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    labels = torch.where(mask.bool(), ids, -100)
    labels[:, :4] = -100
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": labels}


def weighted(pairs: list[int]) -> dict[str, Tensor]:
    """The same with a weight for each token, some of them not 1."""
    rows = padded(pairs)
    rows["weights"] = torch.ones(rows["labels"].shape)
    rows["weights"][:, 5::3] = 0.5
    return rows


def batch_of(pairs: list[int]) -> Any:
    """The same as a stream."""
    return stream_of(weighted(pairs), "interleaved")


def by_definition(
    model: Any,
    reference: Any,
    batch: Any,
    objective: Objective,
    num_pairs: float | None = None,
    **more: Tensor,
) -> Tensor:
    """The loss from whole logits of a policy and a reference, each of which applies its own scale
    and softcap."""

    def logp(one: Any) -> Tensor:
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        logits = one(**inputs, use_cache=False).logits.flatten(0, 1)[batch["positions"], :VOCAB]
        return logits.log_softmax(-1)

    ours, targets = logp(model), batch["targets"][:, None]
    stats = SimpleNamespace(logp=ours.gather(1, targets)[:, 0], ref_logp=None, kl=None)
    if objective.needs_reference:
        with torch.no_grad():
            theirs = logp(reference)
        stats.ref_logp = theirs.gather(1, targets)[:, 0]
        stats.kl = (theirs.exp() * (theirs - ours)).sum(1)
    return objective(stats, batch["segments"], batch["weights"], num_pairs, **more).loss
