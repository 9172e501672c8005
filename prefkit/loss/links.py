"""From the margin u of a pair to its loss, by name; ε is label_smoothing."""

import torch
import torch.nn.functional as F
from torch import Tensor


def link_loss(name: str, u: Tensor, beta: float = 1.0, epsilon: float = 0.0) -> Tensor:
    """The loss of margins u, of any shape.

    sigmoid: −(1−ε)·log σ(u) − ε·log σ(−u) (arXiv 2305.18290; ε: conservative DPO).
    robust: its unbiased form, (−(1−ε)·log σ(u) + ε·log σ(−u)) / (1 − 2ε) (arXiv 2403.00409).
    hinge: max(0, 1 − u) (SLiC, arXiv 2305.10425).
    ipo: (u − 1/2β)², u without its factor β (arXiv 2310.12036, eq. 17).
    """
    if name == "ipo":
        return (u - 1 / (2 * beta)) ** 2
    if name == "hinge":
        return torch.relu(1 - u)
    if name not in ("sigmoid", "robust"):
        raise ValueError(f"there is no link {name!r}")
    right, wrong = -F.logsigmoid(u), -F.logsigmoid(-u)
    if name == "robust":
        return ((1 - epsilon) * right - epsilon * wrong) / (1 - 2 * epsilon)
    return (1 - epsilon) * right + epsilon * wrong if epsilon else right
