"""`pair_scores`: linear scores of pairs, with their gradients made in the forward pass."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from .checks import Options, checked
from .gemm import compute_dtype
from .one_pass import COEFFICIENTS
from .ops_pairs import ScoresWithGradient, pair_scores_op
from .problem import refuse_unless
from .token_stats import TokenStats, named_stats
from .vocab_parallel import VocabShard


class PairScores(NamedTuple):
    """What `pair_scores` returns.

    Attributes:
        scores: (P,) fp32 (fp64 from fp64 inputs), differentiable once.
        stats: the per-token quantities, without gradient.
    """

    scores: Tensor
    stats: TokenStats


def pair_scores(
    hidden: Tensor,  # (T, D)
    weight: Tensor,  # (V, D)
    targets: Tensor,  # (T,)
    pairs: Tensor,  # (T,)
    num_pairs: int,
    coefficients: Mapping[str, Tensor],  # (T,) each
    bias: Tensor | None = None,  # (V,)
    ref_hidden: Tensor | None = None,  # (T, D')
    ref_weight: Tensor | None = None,  # (V', D')
    ref_bias: Tensor | None = None,  # (V',)
    outputs: tuple[str, ...] = ("logp",),
    ignore_index: int = -100,
    temperature: float = 1.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    memory_budget: int | None = None,
    backend: str = "auto",
    num_scored: int | None = None,
    vocab_shard: VocabShard | None = None,
) -> PairScores:
    """S_i = Σ_t (a_t·logp_t + b_t·KL_t) over the tokens of pair i, in one pass over the logits.

    For losses that are functions of such scores (the whole DPO family): the gradient of S is
    accumulated chunk by chunk in the forward and multiplied by ∂L/∂S in the backward; nothing is
    recomputed (4NDV operations for the gradient where `token_stats` takes 6 to 8).

    Args:
        hidden, weight, targets, bias, ref_*, outputs and the options: as in `token_stats`.
        pairs: (T,) int64, pair 0..num_pairs − 1 of each row; anything in rows to skip.
        num_pairs: P. With a trainable weight or bias it must be 1: the gradient of the weight is
            one (V, D) fp32 accumulator, which becomes the gradient itself where the weight is fp32.
        coefficients: "logp" and, if wanted, "kl": (T,) a_t and b_t, without gradient. Each must be
            among `outputs`.
    Returns:
        PairScores: scores (P,), and the stats that `outputs` names.
    Raises:
        ValueError: as `token_stats`; several pairs with a trainable head; unknown coefficients.
    """
    options = Options(
        tuple(outputs),
        ignore_index,
        temperature,
        logit_scale,
        softcap,
        memory_budget,
        backend,
        num_scored,
        vocab_shard,
    )
    heads = checked((hidden, weight, targets, bias, ref_hidden, ref_weight, ref_bias), options)
    table = _coefficients(coefficients, options.outputs, targets, compute_dtype(hidden.dtype))
    differentiated = [hidden, weight, bias]
    needs = [
        torch.is_grad_enabled() and tensor is not None and tensor.requires_grad
        for tensor in differentiated
    ]
    _check_pairs(pairs, num_pairs, targets != ignore_index, trainable=needs[1] or needs[2])
    if backend == "reference":
        raise ValueError("backend='reference' is token_stats' alone: pair_scores has no definition")
    scores, stats, *gradients = pair_scores_op(
        *(None if x is None else x.detach() for x in heads),
        *options.settings(hidden),
        pairs,
        table,
        num_pairs,
        *needs,
    )
    if any(needs):
        pair_of_row = torch.where(targets == ignore_index, num_pairs, pairs)
        # The caller's own tensors: under autocast an fp32 weight gets its fp32 gradient, unrounded.
        scores = ScoresWithGradient.apply(hidden, weight, bias, scores, *gradients, pair_of_row)
    return PairScores(scores, named_stats(options.outputs, stats))


def _coefficients(
    given: Mapping[str, Tensor], outputs: tuple[str, ...], targets: Tensor, dtype: torch.dtype
) -> Tensor:
    """(2, T) in the order of `one_pass.COEFFICIENTS`, zeros where none is given."""
    unknown = [name for name in given if name not in COEFFICIENTS or name not in outputs]
    if unknown or not given:
        raise ValueError(
            f"coefficients are of {COEFFICIENTS} and must be among outputs = {outputs}; got "
            f"{tuple(given)}"
        )
    table = torch.zeros(len(COEFFICIENTS), len(targets), dtype=dtype, device=targets.device)
    for name, values in given.items():
        if values.requires_grad:
            raise ValueError(
                f"coefficients[{name!r}] require a gradient, which pair_scores does not give: "
                "detach them, or use token_stats"
            )
        if values.shape != targets.shape:
            raise ValueError(
                f"coefficients[{name!r}] must be (T,) = {tuple(targets.shape)}, got "
                f"{tuple(values.shape)}"
            )
        table[COEFFICIENTS.index(name)] = values
    return table


def _check_pairs(pairs: Tensor, num_pairs: int, counts: Tensor, trainable: bool) -> None:
    if pairs.shape != counts.shape or pairs.dtype != torch.int64:
        raise ValueError(
            f"pairs must be (T,) = {tuple(counts.shape)} int64, got {tuple(pairs.shape)} "
            f"{pairs.dtype}"
        )
    if num_pairs < 1:
        raise ValueError(f"num_pairs must be ≥ 1, got {num_pairs}")
    if trainable and num_pairs > 1:
        raise ValueError(
            f"{num_pairs} pairs with a trainable head would need an accumulator of the weight's "
            "size for each: give one pair, freeze the head, or use token_stats"
        )
    right = (~counts | ((pairs >= 0) & (pairs < num_pairs))).all()
    refuse_unless(right, f"pairs must be in 0..{num_pairs - 1} in every row that is not ignored")
