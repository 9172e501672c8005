"""From the margin u of a pair to its loss, by name; ε is label_smoothing, τ discopop_tau."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def link_loss(
    name: str, u: Tensor, beta: float = 1.0, epsilon: float = 0.0, tau: float = 0.05
) -> Tensor:
    """The loss of margins u, of any shape.

    sigmoid: −(1−ε)·log σ(u) − ε·log σ(−u) (arXiv 2305.18290; ε: conservative DPO).
    sigmoid_norm: the same; its u is of token means (arXiv 2411.15124).
    robust: its unbiased form, (−(1−ε)·log σ(u) + ε·log σ(−u)) / (1 − 2ε) (arXiv 2403.00409).
    hinge: max(0, 1 − u) (SLiC, arXiv 2305.10425).
    ipo: (u − 1/2β)², u without its factor β (arXiv 2310.12036, eq. 17).
    exo_pair: KL(q ‖ p), q = (σ(u), σ(−u)) and p = (1 − ε, ε) (EXO, arXiv 2402.00856, eq. 16).
    discopop: (1 − m)·(−log σ(u)) + m·exp(−u), m = σ(u/τ) (arXiv 2406.08414, eq. 5).
    plackett_luce: −log σ(u), u = −log Σ_k exp(−u_k) of the K pairs with the same chosen response,
    which is log(1 + Σ_k exp(−u_k)): that this one is the best of K + 1 (arXiv 2305.18290, appendix
    A.3, eq. 20, of which this is the factor of the first rank).
    """
    if name == "ipo":
        return (u - 1 / (2 * beta)) ** 2
    if name == "hinge":
        return torch.relu(1 - u)
    right, wrong = -F.logsigmoid(u), -F.logsigmoid(-u)
    if name == "exo_pair":
        surplus, shortfall = -right - math.log1p(-epsilon), -wrong - math.log(epsilon)
        return torch.sigmoid(u) * surplus + torch.sigmoid(-u) * shortfall
    if name == "discopop":
        # m·exp(−u) as one exponential: by themselves the factors are 0 and infinite for u < −88.
        return torch.sigmoid(-u / tau) * right + torch.exp(F.logsigmoid(u / tau) - u)
    if name == "robust":
        return ((1 - epsilon) * right - epsilon * wrong) / (1 - 2 * epsilon)
    if name not in ("sigmoid", "sigmoid_norm", "plackett_luce"):
        raise ValueError(f"there is no link {name!r}")
    return (1 - epsilon) * right + epsilon * wrong if epsilon else right
