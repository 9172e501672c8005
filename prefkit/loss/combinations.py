"""Which options of the DPO family go together: each that would do nothing, or nothing meant, is
refused by name.
"""

from typing import Any

from prefkit.errors import ConfigError
from prefkit.loss.fields import DPOOptions
from prefkit.loss.loss_types import LOSS_TYPES, LossType
from prefkit.options.option import default_of


class Echo(str):
    """A value that repeats another option: `dataclasses.replace` hands it on, nobody gave it."""

    __slots__ = ()


def names_of(options: DPOOptions) -> tuple[str, ...]:
    """The losses whose weighted sum is minimised."""
    given = options.loss_type
    return (given,) if isinstance(given, str) else tuple(given or ())


def settle_names(options: DPOOptions) -> None:
    """One way of writing each option that has two.

    `link` and `loss_type` name the same, a single loss in both; several are a tuple. So are
    `loss_weights`, None where all are 1. `use_weighting` is `pair_weights` wpo, which alone is
    read.

    Raises:
        ConfigError: two ways that disagree, no loss at all, or not a weight for each.
    """
    loss_type, link = _given(options.loss_type), _given(options.link)
    chosen = loss_type if loss_type is not None else link or "sigmoid"
    names = (chosen,) if isinstance(chosen, str) else tuple(chosen)
    if link not in (None, *names) or (link and len(names) > 1):
        raise ConfigError(
            f"link is {link!r} and loss_type {', '.join(names)}: they are two names of one "
            "option. Leave link out."
        )
    if not names:
        raise ConfigError("loss_type names no loss. Leave it out for sigmoid.")
    weights = options.loss_weights
    if weights is not None and len(weights) != len(names):
        raise ConfigError(
            f"loss_weights has {len(weights)} numbers for the {len(names)} losses "
            f"{', '.join(names)}. Give one for each, or leave it out."
        )
    all_one = weights is None or all(weight == 1 for weight in weights)
    options.loss_weights = None if all_one else tuple(weights or ())  # type: ignore[assignment]
    if len(names) > 1:
        options.loss_type, options.link = names, None  # type: ignore[assignment]
    else:
        options.loss_type = Echo(names[0]) if loss_type is None else names[0]
        options.link = Echo(names[0]) if link is None else names[0]
    pair_weights = _given(options.pair_weights)
    if options.use_weighting and pair_weights not in (None, "wpo"):
        raise ConfigError(
            f"use_weighting is pair_weights wpo, and pair_weights is {pair_weights!r}. "
            "Leave one out."
        )
    wpo = options.use_weighting and pair_weights is None
    options.pair_weights = Echo("wpo") if wpo else pair_weights


def _given(value: Any) -> Any:
    return None if isinstance(value, Echo) else value


def check_dpo(options: DPOOptions) -> None:
    """Refuses options of `DPO` that exclude each other, or that none of its losses reads.

    Raises:
        ConfigError: names both and the remedy.
    """
    _check_smoothing(options)
    _check_margins(options)
    _check_rewards(options)
    _check_position(options)
    _check_pair_weights(options)
    for name, reader, has in (
        ("f_alpha_divergence_coef", "alpha_divergence", options.f_divergence_type),
        ("discopop_tau", "discopop", names_of(options)),
    ):
        changed = getattr(options, name) != default_of(options.__dataclass_fields__[name])
        if changed and reader not in has:
            raise ConfigError(f"{name} has no effect without {reader}. Remove it.")


def check_dpop(options: DPOOptions) -> None:
    """Refuses options of `DPO` that have no meaning with the penalty of `DPOP`.

    Raises:
        ConfigError: names them.
    """
    if options.reduction == "position" or options.reference_free or "ipo" in names_of(options):
        raise ConfigError(
            "dpop compares whole chosen responses with the reference. Leave reduction, "
            "reference_free and link 'ipo' out."
        )
    others = [name for name in names_of(options) if not _kind(name).takes_margin and name != "sft"]
    if others or options.f_divergence_type != "reverse_kl":
        what = f"loss_type {', '.join(others)}" if others else "f_divergence_type"
        raise ConfigError(
            f"dpop subtracts a penalty from the margin of log-ratios, which {what} does not have. "
            "Leave it out, or use method dpo."
        )


def _check_smoothing(options: DPOOptions) -> None:
    if options.label_smoothing and not any(_kind(name).smoothing for name in names_of(options)):
        readers = [name for name, kind in LOSS_TYPES.items() if kind.smoothing]
        raise ConfigError(
            f"label_smoothing has no effect with {_told(options)}. Use {readers[0]} or "
            f"{', '.join(readers[1:])}."
        )
    if "exo_pair" in names_of(options) and not options.label_smoothing:
        raise ConfigError(
            "loss_type exo_pair needs label_smoothing above 0: with certain labels its divergence "
            "is infinite. Its paper recommends 0.001."
        )


def _check_margins(options: DPOOptions) -> None:
    if not (options.margin or options.margin_weight):
        return
    if options.link == "ipo":
        raise ConfigError(
            "link 'ipo' has its own margin, 1/(2·beta). Leave margin and margin_weight at 0."
        )
    if not any(_kind(name).takes_margin for name in names_of(options)):
        raise ConfigError(
            f"margin and margin_weight have no effect with {_told(options)}, which is no function "
            "of a difference of rewards. Leave them at 0."
        )


def _check_rewards(options: DPOOptions) -> None:
    """What the two rewards of a pair are made of."""
    single = [name for name in names_of(options) if _kind(name).of != "margin" and name != "sft"]
    if options.f_divergence_type != "reverse_kl" and single:
        able = [n for n, kind in LOSS_TYPES.items() if kind.of == "margin"]
        raise ConfigError(
            f"f_divergence_type {options.f_divergence_type} leaves a constant in each reward that "
            f"only their difference is free of, and loss_type {', '.join(single)} takes each by "
            f"itself. Use some of {', '.join(able)}."
        )
    if options.reference_free and (single or options.f_divergence_type != "reverse_kl"):
        what = f"loss_type {', '.join(single)}" if single else "f_divergence_type"
        raise ConfigError(
            f"reference_free excludes {what}, which measures a response against the reference. "
            "Leave one out."
        )
    if options.length_normalized and all(_kind(name).of != "margin" for name in names_of(options)):
        raise ConfigError(f"length_normalized has no effect with {_told(options)}. Leave it out.")
    batch = [name for name in names_of(options) if _kind(name).of == "batch"]
    if "plackett_luce" in names_of(options) and batch:
        raise ConfigError(
            f"loss_type plackett_luce is a loss of groups of pairs, {', '.join(batch)} one of a "
            "whole batch. Leave one out."
        )


def _check_position(options: DPOOptions) -> None:
    position = options.reduction == "position"
    if position and "plackett_luce" in names_of(options):
        raise ConfigError(
            "link 'plackett_luce' compares whole responses, reduction 'position' tokens of two. "
            "Leave one out."
        )
    if position and ("ipo" in names_of(options) or options.length_normalized):
        raise ConfigError(
            "reduction 'position' excludes link 'ipo' and length_normalized. Leave one out."
        )
    whole = [n for n in names_of(options) if _kind(n).of != "margin" or _kind(n).normalized]
    if position and (whole or options.ld_alpha is not None):
        what = f"loss_type {', '.join(whole)}" if whole else "ld_alpha"
        raise ConfigError(
            f"reduction 'position' compares tokens, {what} whole responses. Leave one out."
        )
    if position and options.f_divergence_type != "reverse_kl":
        raise ConfigError(
            "reduction 'position' compares tokens, f_divergence_type whole responses. Leave one "
            "out."
        )
    if options.positions_per_pair is not None and not position:
        raise ConfigError(
            "positions_per_pair has no effect with reduction 'sequence': it goes with "
            "reduction='position'. Remove it, or choose that."
        )


def _check_pair_weights(options: DPOOptions) -> None:
    if options.pair_weights is None:
        return
    how = "use_weighting" if options.use_weighting else "pair_weights"
    if "plackett_luce" in names_of(options):
        raise ConfigError(
            f"{how} weighs pairs, and loss_type plackett_luce is a loss of groups of them. Leave "
            "one out."
        )
    batch = [name for name in names_of(options) if _kind(name).of == "batch"]
    if batch:
        raise ConfigError(
            f"{how} weighs the loss of each pair, and loss_type {', '.join(batch)} is one of all "
            "pairs of a batch. Leave one out."
        )


def _kind(name: str) -> LossType:
    return LOSS_TYPES[name]


def _told(options: DPOOptions) -> str:
    """The losses, as messages name them."""
    return f"link {options.link!r}" if options.link else f"loss_type {', '.join(names_of(options))}"
