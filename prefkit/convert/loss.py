"""TRL's names of preference losses → prefkit's options, for the trainers that use TRL's."""

from dataclasses import dataclass
from typing import Any

from prefkit.convert.draft import Draft

# TRL's loss_type → options; the formulas are compared in tests/loss/test_against_trl.py.
LINKS: dict[str, dict[str, Any]] = {
    "sigmoid": {"link": "sigmoid"},
    "hinge": {"link": "hinge"},
    "ipo": {"link": "ipo"},
    "robust": {"link": "robust"},
    "sigmoid_norm": {"link": "sigmoid", "length_normalized": True},
}
_SMOOTHED = ("robust", "exo_pair", "aot", "aot_unpaired")
LOSS_HINT = "Use method (dpo, tdpo2, simpo, …) and link (sigmoid, ipo, …)."


@dataclass(frozen=True)
class LossKeys:
    """How a trainer calls TRL's options of the loss."""

    types: str = "loss_type"
    weights: str = "loss_weights"
    smoothing: str = "label_smoothing"


def write_losses(draft: Draft, keys: LossKeys) -> None:
    """One loss of TRL's, or a weighted sum of several, and their label smoothing."""
    types = draft[keys.types]
    types = [types] if isinstance(types, str) else list(types or ["sigmoid"])
    weights = draft[keys.weights]
    single = len(types) == 1 and weights in (None, [1], [1.0])
    if single and types[0] in LINKS and draft.has("link"):
        draft.write(keys.types, LINKS[types[0]])
        draft.leave(keys.weights, "there is one loss")
    elif draft.has("loss_type"):
        draft.write(keys.types, {"loss_type": types[0] if len(types) == 1 else types})
        if weights is None:
            draft.leave(keys.weights, "every weight is 1")
        else:
            draft.write(keys.weights, {"loss_weights": weights})
    else:
        _refuse(draft, keys, types)
    _smooth(draft, keys, types)


def _refuse(draft: Draft, keys: LossKeys, types: list[str]) -> None:
    remedy = f"Choose one of: {', '.join(LINKS)}."
    if "sft" in types:
        remedy = (
            "Choose one loss and nll_weight, which adds the chosen response's mean negative "
            "log-likelihood a token, of each pair by itself (TRL takes the batch's tokens as one)."
        )
    named = " and ".join(types)
    why = f"prefkit has no loss {named} with these weights"
    draft.refuse(keys.types, why, remedy, is_loss=True)
    draft.leave(keys.weights, f"{keys.types} is refused already")


def _smooth(draft: Draft, keys: LossKeys, types: list[str]) -> None:
    value, plain = draft[keys.smoothing], set(types) <= {"sigmoid", "sft"}
    if not value:
        draft.leave(keys.smoothing, "it is off")
    elif any(name in _SMOOTHED for name in types):
        draft.write(keys.smoothing, {"label_smoothing": value})
    elif plain:
        draft.refuse(
            keys.smoothing,
            "TRL 1.16 does not read it with loss_type sigmoid, and earlier versions did",
            "Remove it for what TRL does now; prefkit's label_smoothing with link sigmoid is "
            "conservative DPO, as earlier.",
        )
    else:
        draft.leave(keys.smoothing, f"TRL does not read it with loss_type {', '.join(types)}")
