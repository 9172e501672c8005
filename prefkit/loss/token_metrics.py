"""Metrics that are means over scored tokens, under TRL's names and by TRL's definitions.

They come from quantities of the tokens (`prefkit_kernels.TokenStats`) that the pass over the logits
makes anyway, or, for the entropy, that were asked for.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from prefkit.loss.sequence_group import sum_over

if TYPE_CHECKING:
    from prefkit.loss.sides import Sides
    from prefkit_kernels import TokenStats

# What the normalisers tell by the way; the entropy costs another pass over the logits.
LOGGED = ("max_logp", "mean_logit")
CHOSEN, REJECTED = 0, 1
# The sides over whose tokens each metric is a mean.
_SIDES = {
    "mean_token_accuracy": (CHOSEN,),
    "logits/chosen": (CHOSEN,),
    "logits/rejected": (REJECTED,),
    "entropy": (CHOSEN, REJECTED),
}


def token_metric_names(log_entropy: bool) -> list[str]:
    """The names of `token_metrics`."""
    return [name for name in _SIDES if log_entropy or name != "entropy"]


def tokens_of_metrics(tokens: Tensor) -> dict[str, Tensor]:
    """Metric → () the number of tokens that it is a mean over, from (2,) chosen and rejected."""
    return {name: sum(tokens[k] for k in sides) for name, sides in _SIDES.items()}  # type: ignore[misc]


def token_metrics(stats: "TokenStats", sides: "Sides") -> dict[str, Tensor]:
    """Detached scalars, means over the scored tokens of a call.

    A token counts once for every side that scores it, whatever its weight; one of weight 0 is not
    scored. Where processes share the pairs (`sides.group`) the means are those of the group.

    - mean_token_accuracy: share of the chosen tokens that are the likeliest class. Where classes
      share the maximum each is (TRL: the first of them alone).
    - logits/chosen, logits/rejected: mean over the tokens of a side and over the vocabulary.
    - entropy, where the stats have it: mean over the tokens of both sides, in nats.

    Args:
        stats: (T,) each, logp and what `LOGGED` names.
        sides: of the T tokens.
    """
    quantities = {"mean_token_accuracy": likeliest(stats)}
    if stats.mean_logit is not None:
        quantities |= {"logits/chosen": stats.mean_logit, "logits/rejected": stats.mean_logit}
    if stats.entropy is not None:
        quantities["entropy"] = stats.entropy.detach()
    scored, rejected = sides.weights > 0, sides.bucket % 2 == REJECTED
    masks: dict[tuple[int, ...], Tensor] = {
        (CHOSEN,): scored & ~rejected,
        (REJECTED,): scored & rejected,
        (CHOSEN, REJECTED): scored,
    }
    # Selected, not multiplied by 0 or 1: a logit may be infinite.
    each = [torch.where(masks[_SIDES[name]], x, 0).sum() for name, x in quantities.items()]
    sums, tokens = sum_over(sides.group, torch.stack(each)), tokens_of_metrics(sides.tokens.sum(0))
    return {name: sums[k] / tokens[name].clamp(min=1) for k, name in enumerate(quantities)}


def likeliest(stats: "TokenStats") -> Tensor:
    """(T,) 1.0 where the target is the likeliest class; any number at skipped positions."""
    assert stats.logp is not None
    return (stats.logp == stats.max_logp).to(stats.logp.dtype)  # type: ignore[attr-defined]
