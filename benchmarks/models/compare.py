"""Loss and gradients of a model by the fused path in a layout, and by plain logits.

The truth is the model as transformers made it, each sequence by itself, all its logits, their
log-softmax, and TDPO as its paper writes it (arXiv 2404.11999, eqs. 15-18). Its KL term does not
cancel at common tokens, so that every position of a row counts.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.models.pairs import example_pairs
from benchmarks.models.sizes import VOCAB
from prefkit import TDPO, fused_preference_loss
from prefkit.data import PairCollator
from prefkit.data.pair import TokenizedSide
from prefkit.model.attention.install import reading
from prefkit.model.head.transform import LogitTransform

BETA, ALPHA = 0.3, 0.7
_WIDTH = 16  # of the reference, which is a table of hidden states, one for each token id
_SMALL = 1e-3  # of the largest gradient: what a parameter's deviation is at least a share of


@dataclass(frozen=True)
class Result:
    """A loss and its gradients.

    Attributes:
        loss: the loss.
        grads: of each parameter by its name, its own shape; only those that have one.
    """

    loss: float
    grads: dict[str, Tensor]

    def deviation(self, truth: "Result") -> float:
        """How far this is from the truth: the largest of all relative differences.

        Of the loss, and of each parameter's gradient as a share of its largest entry, which counts
        as at least 1e-3 of the largest entry of all parameters. Infinite where a number is none.
        """
        largest = max(float(grad.abs().max()) for grad in truth.grads.values())
        off = [abs(self.loss - truth.loss) / abs(truth.loss)]
        for name in self.grads.keys() | truth.grads.keys():
            like = truth.grads.get(name, self.grads.get(name))
            assert like is not None
            want, got = truth.grads.get(name), self.grads.get(name)
            want = torch.zeros_like(like) if want is None else want
            got = torch.zeros_like(like) if got is None else got
            scale = max(float(want.abs().max()), _SMALL * largest)
            off.append(float((got - want).abs().max()) / scale)
        worst = max(off)
        return worst if worst == worst and all(one == one for one in off) else float("inf")


def plain(model: nn.Module, transform: LogitTransform) -> Result:
    """The truth, see the head of the file.

    Args:
        model: of transformers, nothing of prefkit installed.
        transform: what becomes of the reference's logits, as of those of the model.
    """
    model.zero_grad()
    table, head = _reference(model)

    def ratio_and_kl(side: TokenizedSide) -> tuple[Tensor, Tensor]:
        """Σ w·(log π − log π_ref) and Σ w·KL(π_ref ‖ π) of one sequence."""
        ids = torch.from_numpy(side.ids).long()
        at = torch.from_numpy(side.scored).nonzero()[:, 0]
        logits = model(input_ids=ids[None], use_cache=False).logits[0, at - 1]
        weights = torch.from_numpy(side.weights)[at].to(logits.dtype)
        logp = torch.log_softmax(logits, -1)
        ref = torch.log_softmax(transform(table[ids[at - 1]] @ head.T), -1)
        ratio = (logp - ref).gather(1, ids[at, None])[:, 0]
        return (weights * ratio).sum(), (weights * (ref.exp() * (ref - logp)).sum(-1)).sum()

    losses = []
    for pair in example_pairs():
        chosen, rejected = ratio_and_kl(pair.chosen), ratio_and_kl(pair.rejected)
        # eq. 18: the KL of the chosen side is a constant
        kl = rejected[1] - chosen[1].detach()
        losses.append(-nn.functional.logsigmoid(BETA * (chosen[0] - rejected[0] - ALPHA * kl)))
    loss = torch.stack(losses).mean()
    loss.backward()
    return Result(float(loss.detach()), _grads(model))


def fused(model: nn.Module, transform: LogitTransform, layout: Any) -> Result:
    """The same by prefkit: the head fused, one batch.

    Args:
        model: with `prefkit.model.head.fused.install`, and for a layout other than "padded" with
            `prefkit.model.attention.install.install_attention`.
        transform: what the model does to its logits, as `install` has found it.
        layout: of `PairCollator`.
    """
    model.zero_grad()
    batch = PairCollator(1, layout=layout)(example_pairs())
    table, ref_weight = _reference(model)
    read = batch["input_ids"].reshape(-1)[batch["positions"]]

    def request(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
        out = fused_preference_loss(
            hidden.reshape(-1, hidden.shape[-1])[batch["positions"]],
            weight,
            batch["targets"],
            batch["segments"],
            TDPO(beta=BETA, alpha=ALPHA),
            weights=batch["weights"],
            ref_hidden=table[read],
            ref_weight=ref_weight,
            bias=bias,
            logit_scale=transform.logit_scale,
            softcap=transform.softcap,
        )
        return out.loss, {}

    with reading(batch) as inputs:
        loss = model(**inputs, prefkit_request=request).value
    loss.backward()
    return Result(float(loss.detach()), _grads(model))


def _reference(model: nn.Module) -> tuple[Tensor, Tensor]:
    """(V, D') hidden states by token id and (V', D') head of the reference, the same every time."""
    weight = model.get_output_embeddings().weight  # type: ignore[operator]
    draw = torch.Generator().manual_seed(5)
    table, head = (
        torch.randn(rows, _WIDTH, generator=draw, dtype=torch.float32)
        for rows in (VOCAB, len(weight))
    )
    return table.to(weight.dtype), head.to(weight.dtype) * _WIDTH**-0.5


def _grads(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
