"""Random trees of pairs, and what a model's loss makes of them in a layout."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from prefkit import fused_preference_loss
from prefkit.data import PairCollator
from prefkit.data.pair import TokenizedPair, TokenizedSide, common_prefix
from prefkit.loss.objective import Objective
from prefkit.model.attention.install import install_attention, reading
from prefkit.model.attention.limits import why_not
from prefkit.model.head.fused import install
from prefkit.model.head.transform import LogitTransform

VOCAB = 40
_DEPTH = 6


def random_pairs(seed: int, longest: int = 3) -> list[TokenizedPair]:
    """Pairs of one to three questions, each a random tree of depth 0 to 6.

    Args:
        seed: decides them.
        longest: most tokens of a node.

    Nodes of no token make sequences that end within others, or equal them. Sides are any two
    sequences: the chosen of one pair may be the rejected of another, or its own other side. Some
    questions share no first token among their sequences.
    """
    draw = np.random.default_rng(seed)
    pairs = []
    for question in range(draw.integers(1, 4)):
        depth = int(draw.integers(0, _DEPTH + 1))
        start = draw.integers(0, VOCAB, draw.integers(0, 5))
        sequences = [one for one in _paths(draw, start, depth, longest) if len(one) > 1]
        sequences = sequences or [draw.integers(0, VOCAB, 2)]
        for _ in range(draw.integers(1, 6)):
            chosen, rejected = (_side(draw, sequences) for _ in range(2))
            pairs.append(
                TokenizedPair(
                    chosen=chosen,
                    rejected=rejected,
                    shared=common_prefix(chosen.ids, rejected.ids),
                    source="random",
                    row=len(pairs),
                    question=None if draw.random() < 0.1 else question,
                )
            )
    return pairs


def _paths(
    draw: np.random.Generator, above: np.ndarray, depth: int, longest: int
) -> list[np.ndarray]:
    path = np.concatenate([above, draw.integers(0, VOCAB, draw.integers(0, longest + 1))])
    if not depth:
        return [path]
    children = range(draw.integers(1, 4))
    found = [one for _ in children for one in _paths(draw, path, depth - 1, longest)]
    return [found[i] for i in draw.permutation(len(found))[:8]]


def _side(draw: np.random.Generator, sequences: list[np.ndarray]) -> TokenizedSide:
    ids = sequences[draw.integers(len(sequences))]
    scored = np.arange(len(ids)) >= draw.integers(1, len(ids))
    scored &= draw.random(len(ids)) < 0.9
    scored[-1] = True
    weights = draw.choice([0.0, 0.3, 1.0, 1.7], len(ids), p=[0.1, 0.2, 0.5, 0.2])
    weights[-1] = 1.0
    weights = np.where(scored, weights, 0).astype(np.float32)
    return TokenizedSide(ids=ids.astype(np.int32), scored=scored, weights=weights, eos=False)


class Reader(NamedTuple):
    """A model that reads trees, and what it does to its logits."""

    model: nn.Module
    transform: LogitTransform

    @classmethod
    def of(cls, model: nn.Module) -> "Reader":
        """Prepares a model in place."""
        head = install(model.eval())
        install_attention(model)
        assert why_not(model, 64) is None
        return cls(model, head.transform)


@dataclass(frozen=True)
class Outcome:
    """A loss, its metrics, and the gradient of each parameter."""

    loss: float
    metrics: dict[str, float]
    grads: dict[str, Tensor]

    def deviation(self, other: "Outcome") -> float:
        """The largest difference of any number, gradients as a share of the largest of all."""
        off = [abs(self.loss - other.loss)]
        off += [abs(self.metrics[name] - value) for name, value in other.metrics.items()]
        largest = max(1e-3, *(float(grad.abs().max()) for grad in other.grads.values()))
        for name, grad in other.grads.items():
            off.append(float((self.grads[name] - grad).abs().max()) / largest)
        assert self.metrics.keys() == other.metrics.keys()
        return max(off)


def outcome(
    policy: Reader,
    reference: Reader,
    pairs: list[TokenizedPair],
    layout: Any,
    objective: Objective,
    passes: str = "auto",
) -> Outcome:
    """One forward and backward of a model with a fused head, the reference's head beside it."""
    batch = PairCollator(0, layout=layout, one_sided=objective.needs_kl)(pairs)
    model, transform = policy
    model.zero_grad()
    terms: dict[str, Any] = {}
    if objective.needs_reference:
        with torch.no_grad(), reading(batch) as inputs:
            hidden = reference.model.base_model(**inputs).last_hidden_state  # type: ignore[operator]
        picked = hidden.flatten(0, 1)[batch["positions"]]
        weight = reference.model.get_output_embeddings().weight.detach()  # type: ignore[operator]
        terms = {"ref_hidden": picked, "ref_weight": weight}

    def request(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
        out = fused_preference_loss(
            hidden.flatten(0, 1)[batch["positions"]],
            weight,
            batch["targets"],
            batch["segments"],
            objective,
            weights=batch["weights"],
            token_index=batch.get("token_index"),
            one_sided=batch.get("one_sided", False),
            num_scored=batch["num_scored"],
            passes=passes,
            bias=bias,
            logit_scale=transform.logit_scale,
            softcap=transform.softcap,
            **terms,
        )
        return out.loss, out.metrics

    with reading(batch) as inputs:
        found = model(**inputs, prefkit_request=request)
    found.value.backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    metrics = {name: float(value) for name, value in found.extras.items()}
    if any(np.array_equal(pair.chosen.ids, pair.rejected.ids) for pair in pairs):
        del metrics["rewards/accuracies"]  # rounding decides which of two equal rewards is larger
    return Outcome(float(found.value.detach()), metrics, grads)
