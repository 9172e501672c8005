"""The definition, unfused: every quantity written as its formula over whole (N, V) logits.

It is the oracle of the tests and the `backend="reference"` of `token_stats`. Nothing here is
shared with the fused backends, so that a bug there cannot hide in its own oracle. Use it in fp64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .logits import LogitScaling


def logits(
    hidden: Tensor,  # (N, D)
    weight: Tensor,  # (V, D)
    bias: Tensor | None,  # (V,)
    scaling: LogitScaling,
) -> Tensor:
    """The model's logits, (N, V), in fp32 (fp64 from fp64 inputs)."""
    dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    raw = hidden.to(dtype) @ weight.to(dtype).T
    if bias is not None:
        raw = raw + bias.to(dtype)
    z = raw * scaling.scale
    if scaling.softcap:
        z = scaling.softcap * torch.tanh(z / scaling.softcap)
        z = torch.where(raw == -torch.inf, raw, z)
    return z / scaling.temperature


def token_stats(
    policy: Tensor,  # (N, V) logits
    reference: Tensor | None,  # (N, V') logits
    targets: Tensor,  # (N,)
    outputs: tuple[str, ...],
) -> dict[str, Tensor]:
    """Per-token quantities from logits by their textbook formulas, each (N,), for autograd.

    logp = log p(y); kl = Σ_v p'(v)·[log p'(v) − log p(v)] (TDPO, arXiv 2404.11999, eq. 8);
    reverse_kl the same with the roles swapped; entropy = −Σ p·log p; log_sum_sq = log Σ p²
    (WPO, arXiv 2406.11827); max_logp = max_v log p(v); mean_logit = Σ_v z_v / V. A class with
    probability 0 adds nothing to an expectation under it; classes beyond the shorter vocabulary
    have probability 0 there.
    """
    width = max(policy.shape[-1], reference.shape[-1] if reference is not None else 0)
    logp = _widen(policy, width).log_softmax(-1)
    found: dict[str, Tensor] = {}
    if "logp" in outputs:
        found["logp"] = logp.gather(-1, targets[:, None]).squeeze(-1)
    if "entropy" in outputs:
        found["entropy"] = -_expectation(logp, logp)
    if "log_sum_sq" in outputs:
        found["log_sum_sq"] = (2 * logp).logsumexp(-1)
    if "max_logp" in outputs:
        found["max_logp"] = logp.amax(-1).detach()
    if "mean_logit" in outputs:
        found["mean_logit"] = policy.mean(-1).detach()
    if reference is not None:
        ref = _widen(reference, width).log_softmax(-1)
        if "ref_logp" in outputs:
            found["ref_logp"] = ref.gather(-1, targets[:, None]).squeeze(-1)
        if "kl" in outputs:
            found["kl"] = _expectation(ref, _difference(ref, logp))
        if "reverse_kl" in outputs:
            found["reverse_kl"] = _expectation(logp, _difference(logp, ref))
    return found


def _expectation(logp: Tensor, values: Tensor) -> Tensor:
    """Σ_v p(v)·values(v), where p(v) = 0 contributes 0 whatever the value."""
    alive = logp != -torch.inf
    return (logp.exp() * values.masked_fill(~alive, 0.0)).sum(-1)


def _difference(a: Tensor, b: Tensor) -> Tensor:
    """a − b, and 0 (not NaN) where both are −inf; values and gradients stay finite there."""
    dead = (a == -torch.inf) & (b == -torch.inf)
    return a.masked_fill(dead, 0.0) - b.masked_fill(dead, 0.0)


def _widen(z: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(z, (0, width - z.shape[-1]), value=-torch.inf)
