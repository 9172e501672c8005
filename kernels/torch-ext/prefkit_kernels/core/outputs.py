"""The quantities of a token by name, and the tuple they are returned in."""

from typing import NamedTuple

from torch import Tensor

OUTPUTS = ("logp", "ref_logp", "kl", "reverse_kl", "entropy", "log_sum_sq")
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
    """

    logp: Tensor | None = None
    ref_logp: Tensor | None = None
    kl: Tensor | None = None
    reverse_kl: Tensor | None = None
    entropy: Tensor | None = None
    log_sum_sq: Tensor | None = None


def named_stats(outputs: tuple[str, ...], stats: Tensor) -> TokenStats:
    """The rows of (K, T) `stats` under their names; without gradient where there is none."""
    named = {
        name: stats[k] if name in DIFFERENTIABLE else stats[k].detach()
        for k, name in enumerate(outputs)
    }
    return TokenStats(**named)
