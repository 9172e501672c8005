"""The quantities of a token by name, and the tuple they are returned in."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

OUTPUTS = (
    *("logp", "ref_logp", "kl", "reverse_kl", "entropy", "log_sum_sq"),
    *("max_logp", "mean_logit"),
)
DIFFERENTIABLE = ("logp", "kl", "reverse_kl", "entropy", "log_sum_sq")
NEEDS_REFERENCE = ("ref_logp", "kl", "reverse_kl")
# Sums over classes, once the normalisers are known.
SUMS = ("kl", "reverse_kl", "entropy", "log_sum_sq")
KLS = frozenset({"kl", "reverse_kl"})


class TokenStats(NamedTuple):
    """Per-token quantities, each (T,) fp32 (fp64 from fp64 inputs), None where not asked for.

    At positions whose target is `ignore_index` every quantity is 0. Units: nats.

    Attributes:
        logp: log p(target) under the policy.
        ref_logp: the same under the reference; carries no gradient.
        kl: KL(reference ‖ policy) over the whole vocabulary (TDPO, arXiv 2404.11999).
        reverse_kl: KL(policy ‖ reference).
        entropy: entropy of the policy's distribution.
        log_sum_sq: log Σ_v p(v)² of the policy (WPO, arXiv 2406.11827).
        max_logp: log p of the policy's likeliest class; carries no gradient. It equals logp to the
            bit where the target is that class, or has the very same logit as that class.
        mean_logit: mean over the vocabulary of the policy's logits (after scale, softcap and
            temperature; −inf where a class is masked); carries no gradient.
    """

    logp: Tensor | None = None
    ref_logp: Tensor | None = None
    kl: Tensor | None = None
    reverse_kl: Tensor | None = None
    entropy: Tensor | None = None
    log_sum_sq: Tensor | None = None
    max_logp: Tensor | None = None
    mean_logit: Tensor | None = None


def differentiated(outputs: tuple[str, ...], detached: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The outputs that get a gradient."""
    return tuple(name for name in outputs if name in DIFFERENTIABLE and name not in detached)


def named_stats(
    outputs: tuple[str, ...], stats: Tensor, detached: tuple[str, ...] = ()
) -> TokenStats:
    """The rows of (K, T) `stats` under their names; without gradient where there is none."""
    with_gradient = differentiated(outputs, detached)
    named = {
        name: stats[k] if name in with_gradient else stats[k].detach()
        for k, name in enumerate(outputs)
    }
    return TokenStats(**named)
