"""The options of the losses.

A class `…Options` holds an objective's options, for the objective itself and for the options of a
training run, which has all of them: an option is written down once, here. Nothing imports torch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from prefkit.loss.loss_types import LOSS_TYPES
from prefkit.options.option import option


@dataclass(kw_only=True)
class BetaOptions:
    """What every objective has."""

    # -- method ---------------------------------------------------------------------------------
    beta: float = option(None, above=0)
    """β, strength of the pull towards the reference; None = the method's own (docs/options.md)."""


@dataclass(kw_only=True)
class TokenHookOptions:
    """Weights that a function makes of what a step has computed (`prefkit.loss.weights`)."""

    # -- method ---------------------------------------------------------------------------------
    token_weights: str | Callable[..., Any] | None = option(None)
    """Function that makes weights of tokens, multiplied with the rows' own: confpo, ld_dpo,
    tis_dpo, full_step_dpo, step_rewards or package.module:function, with parameters by name, such
    as "ld_dpo(alpha=0.3)" (docs/objectives.md)."""


@dataclass(kw_only=True)
class HookOptions(TokenHookOptions):
    """The same of tokens and of pairs, where the loss has pairs."""

    # -- method ---------------------------------------------------------------------------------
    pair_weights: str | Callable[..., Any] | None = option(None)
    """Function that makes a weight of each pair, by which its loss is multiplied: wpo or
    package.module:function."""


@dataclass(kw_only=True)
class DPOOptions(HookOptions, BetaOptions):
    """Options of `DPO`."""

    # -- method ---------------------------------------------------------------------------------
    loss_type: str | list[str] | None = option(None, choices=tuple(LOSS_TYPES))
    """The loss, or several whose weighted sum is minimised, under TRL's names; docs/objectives.md
    has papers and formulas. None = sigmoid (DPO)."""
    loss_weights: list[float] | None = option(None, at_least=0)
    """A factor for each loss of loss_type; None = 1 each."""
    link: str = option(None, choices=tuple(LOSS_TYPES), compare=False)
    """The same as loss_type, for one loss: either of the two will do. None = loss_type."""
    label_smoothing: float = option(0.0, at_least=0, below=0.5)
    """Probability that a label is flipped, in [0, 0.5); for the losses sigmoid, sigmoid_norm,
    robust, exo_pair (which needs it: 0.001 in its paper), aot and aot_unpaired."""
    f_divergence_type: Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"] = (
        option("reverse_kl")
    )
    """The divergence that holds the policy to the reference (f-DPO, 2309.16240); for losses of the
    difference of two rewards."""
    f_alpha_divergence_coef: float = option(0.5)
    """α of alpha_divergence; 1 is reverse_kl."""
    discopop_tau: float = option(0.05, above=0)
    """Temperature of discopop's blend."""
    ld_alpha: float | None = option(None, at_least=0, at_most=1)
    """Weight, in the rewards, of tokens beyond the length of a pair's shorter response (LD-DPO,
    2409.06411); None = 1."""
    use_weighting: bool = option(False, compare=False)
    """The same as pair_weights wpo: pairs that the policy itself is likely to write weigh more
    (WPO, 2406.11827)."""
    length_normalized: bool = option(False)
    """Mean log-ratio over a side's tokens instead of the sum."""
    reference_free: bool = option(False)
    """Leave the reference out of the loss: r_t = logp_t."""
    margin: float = option(None)
    """Target margin subtracted from the difference of rewards; None = 0 (SimPO's γ: 1)."""
    margin_weight: float = option(0.0, at_least=0)
    """Factor of a margin that each row brings (field `margin`), subtracted besides (offset DPO,
    2402.10571); 0 = rows bring none."""
    nll_weight: float = option(0.0, at_least=0)
    """Weight of an added negative log-likelihood a token of the chosen side (RPO, 2404.19733)."""
    reduction: Literal["sequence", "position"] = option("sequence")
    """sequence = the papers' losses; position = cDPO's released code: token j of the chosen against
    token j of the rejected side, the loss of each, and the mean over positions."""
    positions_per_pair: int | None = option(None, at_least=1)
    """Divisor of reduction "position", positions without a scored token adding the loss of margin 0
    (the released code: the padded row length minus 1); None = the positions of the longer side."""


@dataclass(kw_only=True)
class DPOPOptions:
    """What `DPOP` has besides the options of `DPO`."""

    # -- method ---------------------------------------------------------------------------------
    penalty: float = option(None, at_least=0)
    """λ of dpop: how much a chosen response below its reference probability costs; None = 50."""


@dataclass(kw_only=True)
class TDPOOptions(HookOptions, BetaOptions):
    """Options of `TDPO`."""

    # -- method ---------------------------------------------------------------------------------
    alpha: float = option(None, at_least=0)
    """α of tdpo2, weight of the sequential KL term; None = 0.5."""


@dataclass(kw_only=True)
class KTOOptions(TokenHookOptions, BetaOptions):
    """Options of `KTO`."""

    # -- method ---------------------------------------------------------------------------------
    desirable_weight: float = option(1.0, at_least=0)
    """w_d of kto, weight of desirable responses. Its paper recommends w_d·n_d : w_u·n_u between 1:1
    and 4:3 for n_d desirable and n_u undesirable ones."""
    undesirable_weight: float = option(1.0, at_least=0)
    """w_u of kto, weight of undesirable responses."""
    reference_point: bool = option(True)
    """Estimate z0 of kto from mismatched responses, which policy and reference read besides. Off:
    z0 = 0, which is TRL's apo_zero_unpaired."""


@dataclass(kw_only=True)
class LossOptions(DPOPOptions, DPOOptions, TDPOOptions, KTOOptions):
    """The options of every objective, as a training run has them."""
