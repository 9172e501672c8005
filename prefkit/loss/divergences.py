"""What of a response's log-ratio makes its reward, where the divergence is no reverse KL."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_LARGEST = 80.0  # exp of more is beyond fp32; the gradient is 0 there


def divergence_score(name: str, s: Tensor, alpha: float) -> Tensor:
    """f'(t) of t = π(y)/π_ref(y) from s = log t, without constants that cancel (f-DPO, arXiv
    2309.16240).

    reverse_kl: s; forward_kl: 1 − 1/t; js_divergence: log(2t / (1 + t));
    alpha_divergence: (t^(α−1) − 1) / (α − 1), which tends to s as α to 1.
    """
    if is_reverse_kl(name, alpha):
        return s
    if name == "forward_kl":
        return 1 - torch.exp((-s).clamp(max=_LARGEST))
    if name == "js_divergence":
        return math.log(2) + F.logsigmoid(s)
    if name == "alpha_divergence":
        return torch.expm1(((alpha - 1) * s).clamp(max=_LARGEST)) / (alpha - 1)
    raise ValueError(f"there is no divergence {name!r}")


def is_reverse_kl(name: str, alpha: float) -> bool:
    """Whether the score of a response is its log-ratio, and so linear."""
    return name == "reverse_kl" or (name == "alpha_divergence" and abs(alpha - 1) < 1e-6)
