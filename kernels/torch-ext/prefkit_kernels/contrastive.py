"""Contrastive scores of cDPO: how much a pair of models agrees on each token being a good one."""

from __future__ import annotations

import torch
from torch import Tensor

from .core.buffers import token_budget, token_chunks, token_tile
from .core.checks import autocast_operands, check_dtypes, check_head, check_targets
from .core.gemm import compute_dtype, project_
from .core.logits import LogitScaling


@torch.no_grad()
def contrastive_scores(
    pos_hidden: Tensor,  # (T, D)
    pos_weight: Tensor,  # (V, D)
    neg_hidden: Tensor,  # (T, D')
    neg_weight: Tensor,  # (V', D')
    targets: Tensor,  # (T,)
    beta: float = 1.0,
    pos_bias: Tensor | None = None,  # (V,)
    neg_bias: Tensor | None = None,  # (V',)
    ignore_index: int = -100,
    memory_budget: int | None = None,
    pos_logit_scale: float = 1.0,
    neg_logit_scale: float = 1.0,
    pos_softcap: float | None = None,
    neg_softcap: float | None = None,
) -> Tensor:
    """Contrastive estimation of cDPO (arXiv 2411.19943): low scores mark critical tokens.

    s_t = softmax((1 + β)·z_pos − β·z_neg)[y_t], equivalently π_pos^{1+β} / π_neg^β normalised over
    the vocabulary. Classes that only one of the two vocabularies has are left out.

    Args:
        pos_hidden, pos_weight: (T, D), (V, D) of the model tuned on right trajectories.
        neg_hidden, neg_weight: (T, D'), (V', D') of the one tuned on wrong trajectories.
        targets: (T,) int64; positions equal to `ignore_index` come back 0.
        beta: contrast strength β (b in the paper's code), 1.0 there.
        pos_bias, neg_bias: biases of the heads, or None.
        ignore_index: target value of positions to skip.
        memory_budget: bytes for logits buffers; None = a sensible default.
        pos_logit_scale, neg_logit_scale, pos_softcap, neg_softcap: what each model does to its
            logits, as in `token_stats`.
    Returns:
        (T,) s_t in (0, 1), fp32 (fp64 from fp64 inputs), without gradient.
    Raises:
        ValueError: shapes, dtypes or devices that do not fit together, a softcap that is not
            positive, or a target outside the common vocabulary.
    """
    check_head(pos_hidden, pos_weight, targets, pos_bias, "pos_")
    check_head(neg_hidden, neg_weight, targets, neg_bias, "neg_")
    pos_hidden, pos_weight = autocast_operands(pos_hidden, pos_weight)
    neg_hidden, neg_weight = autocast_operands(neg_hidden, neg_weight)
    check_dtypes(pos_hidden, pos_weight, "pos_")
    check_dtypes(neg_hidden, neg_weight, "neg_")
    pos = LogitScaling(pos_logit_scale, _checked(pos_softcap))
    neg = LogitScaling(neg_logit_scale, _checked(neg_softcap))
    vocab = min(pos_weight.shape[0], neg_weight.shape[0])
    check_targets(targets, vocab, ignore_index)
    positions = (targets != ignore_index).nonzero().squeeze(1)
    dtype = compute_dtype(pos_hidden.dtype)
    scores = pos_hidden.new_zeros(len(targets), dtype=dtype)
    token_bytes = 2 * vocab * scores.element_size()
    budget = memory_budget or token_budget(pos_hidden.device, token_bytes)
    with torch.autocast(pos_hidden.device.type, enabled=False):
        for start, stop in token_chunks(
            len(positions), token_bytes, budget, token_tile(pos_hidden.device)
        ):
            here = positions[start:stop]
            z = _logits(pos_hidden[here], pos_weight[:vocab], pos_bias, dtype, pos)
            other = _logits(neg_hidden[here], neg_weight[:vocab], neg_bias, dtype, neg)
            z.mul_(1 + beta).sub_(other, alpha=beta)
            _leave_out_masked_(z, pos_bias, neg_bias)
            target_z = z.gather(1, targets[here, None]).squeeze(1)
            scores[here] = (target_z - z.logsumexp(1)).exp()
    return scores


def _leave_out_masked_(z: Tensor, *biases: Tensor | None) -> None:
    """A class that either model masks (bias −inf) has no score: −inf − (−inf) is not a number."""
    for bias in biases:
        if bias is not None:
            z.masked_fill_(bias[: z.shape[1]] == -torch.inf, -torch.inf)


def _checked(softcap: float | None) -> float:
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap must be > 0 or None, got {softcap}")
    return softcap or 0.0


def _logits(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    scaling: LogitScaling,
) -> Tensor:
    """(tokens, V); a class that the bias masks is no −inf under a softcap: the caller masks it."""
    z = hidden.new_empty(hidden.shape[0], weight.shape[0], dtype=dtype)
    project_(z, hidden, weight)
    if bias is not None:
        z.add_(bias[: weight.shape[0]])
    if scaling.scale != 1:
        z.mul_(scaling.scale)
    if scaling.softcap:
        z.div_(scaling.softcap).tanh_().mul_(scaling.softcap)
    return z
