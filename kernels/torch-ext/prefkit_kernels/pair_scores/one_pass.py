"""`one_pass`: scores linear in the per-token quantities, and their gradients, in one pass.

S_i = Σ_t (a_t·logp_t + b_t·KL_t) over the tokens of pair i, with a, b known beforehand. A loss that
is a function of S has the gradient L'(S_i)·∂S_i, and ∂S_i can be accumulated while the logits of a
chunk are still there: nothing is recomputed. dH and dW cost 1 unit each (2NDV operations), as in an
unchunked computation; the backward multiplies by L'(S_i).

dW of all tokens is one fp32 accumulator, so with it a trainable head takes one pair; a frozen head
takes any number of them. Or the gradients by the logits are kept and dW is made of them in the
backward (`keep_dz`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._ops import add_op_namespace_prefix
from ..core.buffers import padded
from ..core.chunks import Chunk, Chunks
from ..core.gemm import add_hidden_grad_, add_weight_grad_, compute_dtype, gradient_dtype
from ..core.problem import NUM_TENSORS, SETTINGS, TENSORS, Problem, plain, problem_of

COEFFICIENTS = ("logp", "kl")
_FP16_EXPONENT = 10.0  # coefficients up to 2¹⁰: far from fp16's 2¹⁶, and p down to 6e-11 counts
# Where dz is of a lower precision than the logits, that of three chunks is kept and multiplied at
# once: every addition to dW reads and writes an fp32 matrix of its size.
GROUP = 3
_NUM_SCORED = [name.split()[-1] for name in SETTINGS.split(", ")].index("num_scored")
_NEEDS = "bool need_hidden, bool need_weight, bool need_bias"


@torch.library.custom_op(
    add_op_namespace_prefix("pair_scores"),
    mutates_args=(),
    schema=(
        f"({TENSORS}, {SETTINGS}, Tensor pairs, Tensor coefficients, int num_pairs, {_NEEDS}, "
        "bool keep) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
    ),
)
def pair_scores_op(*args: Any) -> tuple[Tensor, ...]:
    """(scores, stats, d_hidden, d_weight, d_bias, dz, scale); gradients empty where not needed.

    With `keep`, for which the settings must tell `num_scored`, dz takes the place of d_weight and
    d_bias.
    """
    problem, (pairs, coefficients, num_pairs, *needs, keep) = args[:-7], args[-7:]
    with plain(args[0]):
        found = pair_scores(
            problem_of(*problem),
            pairs,
            coefficients,
            num_pairs,
            (needs[0], needs[1], needs[2]),
            keep,
        )
    scores = found[0]
    assert scores is not None, "scores are always made"
    return tuple(scores.new_empty(0) if x is None else x for x in found)


@pair_scores_op.register_fake
def _pair_scores_fake(*args: Any) -> tuple[Tensor, ...]:
    hidden, weight, outputs = args[0], args[1], args[NUM_TENSORS]
    num_pairs, *needs, keep = args[-5:]
    num_scored = args[NUM_TENSORS + _NUM_SCORED]
    like = hidden.new_empty(0, dtype=compute_dtype(hidden.dtype))
    return (
        like.new_empty(num_pairs),
        like.new_empty(len(outputs), hidden.shape[0]),
        like.new_empty(hidden.shape if needs[0] else (0,)),
        like.new_empty(weight.shape if needs[1] and not keep else (0,)),
        like.new_empty(weight.shape[0] if needs[2] and not keep else 0),
        _empty_dz(hidden, num_scored, weight.shape[0]) if keep else like.new_empty(0),
        like.new_empty(()),
    )


def _empty_dz(hidden: Tensor, num_scored: int, classes: int) -> Tensor:
    return hidden.new_empty(num_scored, padded(classes), dtype=gradient_dtype(hidden))


def pair_scores(
    problem: Problem,
    pairs: Tensor,  # (T,) int64, 0..num_pairs − 1 where the token counts
    coefficients: Tensor,  # (2, T): a of logp, b of KL
    num_pairs: int,
    needs: tuple[bool, bool, bool],
    keep: bool = False,
) -> tuple[Tensor | None, ...]:
    """Scores, statistics and the gradients of the scores.

    With `keep` those of weight and bias are left to `keep_dz.gradients`.

    Returns:
        scores: (P,) fp32 | fp64.
        stats: (K, T), 0 at skipped positions.
        d_hidden: (T, D) fp32 | fp64: row t is ∂S_i/∂hidden_t of its own pair i.
        d_weight: (V, D) fp32 | fp64 ∂(Σ_i S_i)/∂weight, d_bias: (V,) likewise.
        dz: with `keep` (N, padded V) gradients of the scores by the raw logits, times scale, and
        scale: () a power of two.
    """
    hidden = problem.policy.hidden
    names = tuple(name for name in COEFFICIENTS if name in problem.outputs)
    # A skipped position may carry any coefficient and any pair: it has no part in a score.
    counts = problem.targets != problem.ignore_index
    coefficients = torch.where(counts, coefficients.to(problem.dtype), 0)
    used = [coefficients[COEFFICIENTS.index(name)] for name in names]
    chunks = Chunks(
        problem,
        gradients=int(any(needs)),
        without=("kl",) if any(needs) else (),
        group=GROUP if needs[1] else 1,
        keep=keep,
        names=names if any(needs) else (),
    )
    summed = (needs[0], False, False) if keep else needs
    sums = _Directions(problem, summed, _loss_scale(coefficients, chunks.gemm_dtype))
    stats = hidden.new_zeros(hidden.shape[0], len(problem.outputs), dtype=problem.dtype)
    for chunk in chunks:
        if any(needs):
            cotangents = torch.stack([chunks.scored.pick(c, chunk.start, chunk.stop) for c in used])
            if sums.scale is not None:
                cotangents.mul_(sums.scale)
            _gradient(problem, chunks, chunk, names, cotangents)
            if chunk.ends_group:
                sums.add(chunks, chunk)
        chunks.scored.put_(stats, chunk.start, chunk.stop, chunk.stats.T)
    per_token = [stats[:, problem.outputs.index(name)] for name in names]
    value = sum((s * c for s, c in zip(per_token, used)), stats.new_zeros(()))
    scores = value.new_zeros(num_pairs)
    if num_pairs == 1:
        scores[0] = value.sum()
    else:
        scores.index_put_((torch.where(counts, pairs, 0),), value, accumulate=True)
    scale = sums.scale if sums.scale is not None else scores.new_ones(())
    return scores, stats.T.contiguous(), *sums.finish(), chunks.kept, scale


def _loss_scale(coefficients: Tensor, gemm_dtype: torch.dtype) -> Tensor | None:
    """A power of two that lifts fp16 gradients by the logits clear of underflow; None elsewhere.

    They are made before the loss's own scale is known, so a GradScaler comes too late for them:
    with small coefficients (1 / length) much of the probability mass would be flushed to 0. It is
    taken out again, exactly, from the fp32 results. It stays on the device.
    """
    if gemm_dtype != torch.float16:
        return None
    largest = coefficients.abs().amax().clamp_min(2.0**-60)
    return torch.exp2(_FP16_EXPONENT - torch.ceil(torch.log2(largest)))


def _gradient(
    problem: Problem, chunks: Chunks, chunk: Chunk, names: tuple[str, ...], cotangents: Tensor
) -> None:
    """∂S/∂raw logits of a chunk, in its place; its KL, summed with it, enters `chunk.stats`."""
    dz = chunks.dz(chunk)
    kl = None
    if "kl" in names:
        kl = chunk.stats[problem.outputs.index("kl")]
    if dz.shape[1]:
        # No value of logp or KL enters their gradients: any numbers will do for `stats`.
        chunks.kernels.gradient(
            chunk.block, names, chunk.stats[: len(names)], chunk.norms, cotangents, dz, kl_sum=kl
        )
    if kl is not None:
        problem.shard.sum_(kl)


class _Directions:
    """∂S/∂(hidden, weight, bias), group of chunks by group."""

    def __init__(
        self, problem: Problem, needs: tuple[bool, bool, bool], scale: Tensor | None
    ) -> None:
        self.problem, self.scale, self.first = problem, scale, True
        head = problem.policy
        like = head.hidden.new_empty(0, dtype=problem.dtype)
        # Unrounded: it is yet to be multiplied, and two roundings would double bf16's error.
        self.hidden = like.new_zeros(head.hidden.shape) if needs[0] else None
        self.weight = like.new_empty(head.weight.shape) if needs[1] else None
        self.bias = like.new_zeros(head.weight.shape[0]) if needs[2] else None

    def add(self, chunks: Chunks, chunk: Chunk) -> None:
        """Multiplies the gradients by the logits of the group that `chunk` ends."""
        start, stop, dz = chunk.group_start, chunk.stop, chunks.dz_of_group(chunk)
        if self.hidden is not None:
            whole = chunks.scored.positions is None
            direction = self.hidden[start:stop]
            direction = direction if whole else torch.empty_like(direction)
            add_hidden_grad_(direction, dz, self.problem.policy.weight, first=True)
            self.problem.shard.sum_(direction)
            if self.scale is not None:
                direction.div_(self.scale)
            if not whole:
                chunks.scored.put_(self.hidden, start, stop, direction)
        if self.weight is not None:
            add_weight_grad_(self.weight, dz, chunks.hidden(start, stop), first=self.first)
        if self.bias is not None:
            self.bias.add_(dz.sum(0, dtype=compute_dtype(dz.dtype)))
        self.first = False

    def finish(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        if self.first and self.weight is not None:  # no scored token at all
            self.weight.zero_()
        for total in (self.weight, self.bias):
            if total is not None and self.scale is not None:
                total.div_(self.scale)
        return self.hidden, self.weight, self.bias
