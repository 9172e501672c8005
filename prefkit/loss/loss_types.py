"""The names of `loss_type`, and what each of them is a function of.

`link` names the same: it is a `loss_type` of one name. The formulas are in `prefkit.loss.links` (of
a margin) and `prefkit.loss.reward_losses` (of rewards).
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class LossType:
    """What the loss of a pair is made of, and which options it reads.

    Attributes:
        of: "margin" = the difference of the two rewards; "rewards" = both of them; "batch" = all
            pairs of a call.
        normalized: rewards are means over tokens, whatever `length_normalized` says.
        takes_margin: reads `margin` and `margin_weight`.
        smoothing: reads `label_smoothing`.
        alone: a sum of terms of one response each: it has a meaning for a response without another.
    """

    of: Literal["margin", "rewards", "batch"]
    normalized: bool = False
    takes_margin: bool = False
    smoothing: bool = False
    alone: bool = False


LOSS_TYPES: dict[str, LossType] = {
    "sigmoid": LossType("margin", takes_margin=True, smoothing=True),
    "robust": LossType("margin", takes_margin=True, smoothing=True),
    "hinge": LossType("margin", takes_margin=True),
    "ipo": LossType("margin", normalized=True),
    "exo_pair": LossType("margin", takes_margin=True, smoothing=True),
    "discopop": LossType("margin", takes_margin=True),
    "sigmoid_norm": LossType("margin", normalized=True, takes_margin=True, smoothing=True),
    "plackett_luce": LossType("margin", takes_margin=True),
    "nca_pair": LossType("rewards", alone=True),
    "bco_pair": LossType("rewards", alone=True),
    "sppo_hard": LossType("rewards", alone=True),
    "apo_zero": LossType("rewards", alone=True),
    "apo_down": LossType("rewards"),
    "aot": LossType("batch", smoothing=True),
    "aot_unpaired": LossType("batch", smoothing=True),
    "sft": LossType("batch", alone=True),
}
