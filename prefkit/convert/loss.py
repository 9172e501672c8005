"""TRL's names of preference losses → prefkit's options, for the trainers that use TRL's."""

from dataclasses import dataclass

from prefkit.convert.draft import Draft

_SMOOTHED = ("robust", "exo_pair", "aot", "aot_unpaired")
_UNLIKE = ("sigmoid", "sigmoid_norm")  # that prefkit smooths, and TRL does not
LOSS_HINT = "Use method (dpo, tdpo2, simpo, …) and loss_type (sigmoid, ipo, …)."


def equal_sides(title: str) -> str:
    """What is said of `equal: skip`, by the name of a trainer that knows no such thing."""
    return (
        f"{title} trains on pairs of two equal sides, which prefer nothing; here they are skipped "
        "and counted"
    )


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
    if types == ["sigmoid"]:
        draft.leave(keys.types, "sigmoid is prefkit's default, too")
    else:
        draft.write(keys.types, {"loss_type": types[0] if len(types) == 1 else types})
    if weights is None:
        draft.leave(keys.weights, "every weight is 1")
    else:
        draft.write(keys.weights, {"loss_weights": weights})
    _smooth(draft, keys, types)


def _smooth(draft: Draft, keys: LossKeys, types: list[str]) -> None:
    value, plain = draft[keys.smoothing], set(types) <= {"sigmoid", "sft"}
    smoothed = [name for name in types if name in _SMOOTHED]
    unlike = [name for name in types if name in _UNLIKE]
    if not value:
        draft.leave(keys.smoothing, "it is off")
    elif smoothed and unlike:
        draft.refuse(
            keys.smoothing,
            f"TRL smooths {', '.join(smoothed)} and not {', '.join(unlike)}; prefkit smooths both",
            "Remove it, or choose one of them.",
        )
    elif smoothed:
        draft.write(keys.smoothing, {"label_smoothing": value})
    elif plain:
        draft.refuse(
            keys.smoothing,
            "TRL 1.16 does not read it with loss_type sigmoid, and earlier versions did",
            "Remove it for what TRL does now; prefkit's label_smoothing with sigmoid is "
            "conservative DPO, as earlier.",
        )
    else:
        draft.leave(keys.smoothing, f"TRL does not read it with loss_type {', '.join(types)}")
