"""`pair_scores`: linear scores of pairs, with their gradients made in the forward pass.

The function, its checks, and the autograd of the operators in `one_pass` and `keep_dz`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core.checks import HeadTensors, Options, check_passes, checked, output_names
from ..core.gemm import compute_dtype
from ..core.outputs import TokenStats, named_stats
from ..core.problem import refuse_unless
from ..vocab_parallel import VocabShard
from .keep_dz import dz_bytes, keeps_dz, kept_gradients_op, scale_rows
from .one_pass import COEFFICIENTS, pair_scores_op


class PairScores(NamedTuple):
    """What `pair_scores` returns.

    Attributes:
        scores: (P,) fp32 (fp64 from fp64 inputs), differentiable once; where dz was kept, their
            backward may run again (`retain_graph=True`).
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
    passes: str = "auto",
) -> PairScores:
    """S_i = Σ_t (a_t·logp_t + b_t·KL_t) over the tokens of pair i, in one pass over the logits.

    For losses that are functions of such scores (the whole DPO family): the gradient of S is made
    chunk by chunk in the forward and multiplied by ∂L/∂S in the backward; nothing is recomputed
    (4NDV operations for the gradient where `token_stats` takes 6 to 8).

    Args:
        hidden, weight, targets, bias, ref_*, outputs and the options: as in `token_stats`.
        pairs: (T,) int64, pair 0..num_pairs − 1 of each token; anything at skipped ones.
        num_pairs: P.
        coefficients: "logp" and, if wanted, "kl": (T,) a_t and b_t, without gradient. Each must be
            among `outputs`.
        passes: what is held of a trainable weight's gradient. "one_pass": one (V, D) fp32
            accumulator, for one pair; it becomes the gradient itself where the weight is fp32.
            "keep_dz": the gradients by the logits of the N scored tokens, N·V numbers in the dtype
            of hidden (fp32 on a CPU), for any number of pairs. "auto": the latter where that is
            within `keep_dz.allowed_bytes`. A frozen head holds neither, whichever is given.
    Returns:
        PairScores: scores (P,), and the stats that `outputs` names.
    Raises:
        ValueError: as `token_stats`; several pairs with a trainable head for which "auto" finds dz
            too large, or "one_pass"; unknown coefficients.
    """
    check_passes(passes)
    if passes == "two_pass":
        raise ValueError("pair_scores takes one pass; for two passes take token_stats")
    options = Options(
        output_names(outputs),
        (),
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
    trainable = needs[1] or needs[2]
    _check_pairs(pairs, num_pairs, targets != ignore_index)
    if backend == "reference":
        raise ValueError("backend='reference' is token_stats' alone: pair_scores has no definition")
    keep = trainable and _keeps(passes, heads, weight, num_pairs, options)
    if keep and num_scored is None and torch.compiler.is_compiling():
        raise ValueError(
            "passes='keep_dz' in a compiled graph needs num_scored: the number of positions that "
            "are not ignored is a size there"
        )
    if keep and num_scored is None:  # a size that the operator has to state
        options = options._replace(num_scored=int((targets != ignore_index).sum()))
    operands = [None if x is None else x.detach() for x in heads]
    scores, stats, *made = pair_scores_op(
        *operands, *options.settings(hidden), pairs, table, num_pairs, *needs, keep
    )
    if any(needs):
        pair_of_token = torch.where(targets == ignore_index, num_pairs, pairs)
        # The caller's own tensors: under autocast an fp32 weight gets its fp32 gradient, unrounded.
        read = (pair_of_token, operands[0], targets, ignore_index)
        scores = ScoresWithGradient.apply(hidden, weight, bias, scores, *read, *made)
    return PairScores(scores, named_stats(options.outputs, stats))


def _keeps(
    passes: str, heads: HeadTensors, weight: Tensor, num_pairs: int, options: Options
) -> bool:
    """Whether dz is kept, for a trainable head; refuses what does not fit."""
    if passes == "keep_dz":
        return True
    if passes == "one_pass" and num_pairs > 1:
        raise ValueError(
            f"{num_pairs} pairs with a trainable head would need an accumulator of the weight's "
            "size for each in passes='one_pass': give one pair, freeze the head, or keep dz"
        )
    if passes == "one_pass":
        return False
    limits = (options.num_scored, options.memory_budget, options.vocab_shard)
    if not keeps_dz((heads[0], heads[2]), weight, num_pairs, *limits):
        if num_pairs == 1:
            return False
        if options.num_scored is None and torch.compiler.is_compiling():
            raise ValueError(
                f"{num_pairs} pairs with a trainable head in a compiled graph: give num_scored"
            )
        tokens = options.num_scored if options.num_scored is not None else len(heads[2])
        held = dz_bytes(tokens, weight.shape[0], heads[0])
        raise ValueError(
            f"{num_pairs} pairs with a trainable head: the gradients by the logits of {tokens} "
            f"tokens would take {held / 1e6:.3g} MB, more than passes='auto' keeps; give "
            "passes='keep_dz' to keep them, one pair, or use token_stats"
        )
    return True


def _coefficients(
    given: Mapping[str, Tensor], outputs: tuple[str, ...], targets: Tensor, dtype: torch.dtype
) -> Tensor:
    """(2, T) in the order of `one_pass.COEFFICIENTS`, zeros where none is given."""
    if not isinstance(given, Mapping):
        raise ValueError(f"coefficients must be a dict of tensors, got a {type(given).__name__}")
    for name, values in given.items():
        if not isinstance(values, Tensor):
            raise ValueError(
                f"coefficients[{name!r}] must be a tensor (T,), got a {type(values).__name__}"
            )
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


def _check_pairs(pairs: Tensor, num_pairs: int, counts: Tensor) -> None:
    if pairs.shape != counts.shape or pairs.dtype != torch.int64:
        raise ValueError(
            f"pairs must be (T,) = {tuple(counts.shape)} int64, got {tuple(pairs.shape)} "
            f"{pairs.dtype}"
        )
    if not isinstance(num_pairs, (int, torch.SymInt)) or num_pairs < 1:
        raise ValueError(f"num_pairs must be a whole number ≥ 1, got {num_pairs!r}")
    right = (~counts | ((pairs >= 0) & (pairs < num_pairs))).all()
    refuse_unless(
        right, f"pairs must be in 0..{num_pairs - 1} at every position that is not ignored"
    )


class ScoresWithGradient(torch.autograd.Function):
    """Ties scores to the operands whose gradients `pair_scores_op` has made along with them.

    No part of the operator: the backward writes over those gradients (unless dz is kept), which an
    operator's outputs do not allow.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,  # (T, D)
        weight: Tensor,  # (V, D)
        bias: Tensor | None,  # (V,)
        scores: Tensor,  # (P,)
        pair_of_token: Tensor,  # (T,) int64, P where the token does not count
        operand: Tensor,  # (T, D) hidden as the operator read it
        targets: Tensor,  # (T,)
        ignore_index: int,
        *made: Tensor,  # d_hidden, d_weight, d_bias, dz, scale of the operator
    ) -> Tensor:
        ctx.keeps = made[3].dim() == 2
        extra = (operand, targets) if ctx.keeps else ()
        ctx.save_for_backward(*made, pair_of_token, *extra)
        ctx.used, ctx.ignore_index = False, ignore_index
        ctx.dtypes = [x.dtype if x is not None else hidden.dtype for x in (hidden, weight, bias)]
        ctx.classes = weight.shape[0]
        return scores.clone()

    @staticmethod
    def backward(ctx: Any, grad_scores: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "pair_scores has no second derivative (backward with create_graph=True)"
            )
        if not torch.compiler.is_compiling() and not ctx.keeps:
            if ctx.used:
                raise RuntimeError(
                    "a second backward through pair_scores: its gradients were made in the forward "
                    "and have been scaled in place; use passes='two_pass' (token_stats)"
                )
            ctx.used = True
        d_hidden, d_weight, d_bias, dz, scale, pair_of_token, *read = ctx.saved_tensors
        by_token = torch.cat([grad_scores, grad_scores.new_zeros(1)])[pair_of_token]
        needs, dtypes = ctx.needs_input_grad[:3], ctx.dtypes
        # With dz kept a second backward is possible: nothing is written over.
        own = d_hidden.clone() if ctx.keeps and d_hidden.dtype == dtypes[0] else d_hidden
        grads = [_scaled(own, by_token, dtypes[0]) if needs[0] else None]
        if ctx.keeps:
            settings = (ctx.ignore_index, ctx.classes, dtypes[1], needs[1], needs[2])
            found = kept_gradients_op(dz, scale, *read, by_token, *settings)
            grads += [found[0] if needs[1] else None, found[1].to(dtypes[2]) if needs[2] else None]
        else:  # there is one pair then, or neither of the two is needed
            of_all = grad_scores[:1].expand(max(len(d_weight), len(d_bias)))
            grads += [
                _scaled(direction, of_all, dtype) if need else None
                for direction, dtype, need in zip((d_weight, d_bias), dtypes[1:], needs[1:])
            ]
        return *grads, *(None,) * 10


def _scaled(direction: Tensor, factors: Tensor, dtype: torch.dtype) -> Tensor:
    """direction ⊙ factors in `dtype`, in the direction's own memory where the dtypes agree.

    A second backward through the same graph would find it scaled already, and is refused. While a
    compiler traces, the product is an ordinary one, in new memory.
    """
    if torch.compiler.is_compiling() or type(direction) is not Tensor:
        shape = (-1,) + (1,) * (direction.dim() - 1)
        return (direction.to(factors.dtype) * factors.view(shape)).to(dtype)
    same = direction.dtype == dtype
    out = direction if same else direction.new_empty(direction.shape, dtype=dtype)
    return scale_rows(direction, factors, out).detach()
