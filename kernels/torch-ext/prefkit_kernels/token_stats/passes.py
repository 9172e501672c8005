"""One pass or two: the forward of `token_stats`, and its backward.

N scored tokens, D hidden, V classes; one product over all of it is 2NDV operations ("1 unit"). The
statistics cost 1 unit for the policy and 1 for the reference.

One pass, with a frozen head: the gradient of a statistic is known in the forward up to its
cotangent. The same chunk also gives the direction v_t = ∂stat_t/∂hidden_t (1 unit an output), and
the backward only multiplies each token's direction.

Two passes, for a trainable head and any cotangents: the backward goes by slices of the vocabulary.
With the normalisers saved, slices are independent, so each row of dW is written once and needs no
V × D accumulator. The logits are recomputed (1 unit, 1 more for the reference where a KL has a
gradient); dH and dW cost 1 unit each.

Positions whose target is `ignore_index` are never gathered: a masked token costs nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core.buffers import new_store, padded_view, slice_budget, vocab_slices
from ..core.chunks import Chunks
from ..core.gemm import (
    add_hidden_grad_,
    compute_dtype,
    gradient_dtype,
    project_,
    weight_grad_,
)
from ..core.logits import LogitsBlock
from ..core.outputs import KLS
from ..core.problem import Problem, Scored

_TOKENS_AT_ONCE = 4096


def forward(problem: Problem, with_directions: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Statistics, normalisers and, for one pass, directions.

    Returns:
        stats: (K, T) fp32 | fp64, 0 at skipped positions.
        norms: (4, T): max and log-sum of the policy's logits, then of the reference's.
        directions: (number of differentiated outputs, T, D) in the dtype of hidden; (0, T, D)
            without `with_directions`. 0 at skipped positions.
    """
    hidden = problem.policy.hidden
    names = problem.differentiated if with_directions else ()
    stats = hidden.new_zeros(hidden.shape[0], len(problem.outputs), dtype=problem.dtype)
    norms = stats.new_zeros(hidden.shape[0], 4)
    directions = hidden.new_zeros(len(names), *hidden.shape)
    chunks = Chunks(problem, gradients=len(names), names=names)
    for chunk in chunks:
        for k, name in enumerate(names):
            dz = chunks.dz(chunk, last=k == len(names) - 1)
            row = problem.outputs.index(name)
            values = chunk.stats[row : row + 1]
            cotangents = torch.ones_like(values)
            if dz.shape[1]:
                chunks.kernels.gradient(chunk.block, (name,), values, chunk.norms, cotangents, dz)
            direction = values.new_empty(values.shape[1], hidden.shape[1])
            add_hidden_grad_(direction, dz, problem.policy.weight, first=True)
            problem.shard.sum_(direction)
            chunks.scored.put_(directions[k], chunk.start, chunk.stop, direction)
        chunks.scored.put_(stats, chunk.start, chunk.stop, chunk.stats.T)
        chunks.scored.put_(norms, chunk.start, chunk.stop, chunk.norms.T)
    return stats.T.contiguous(), norms.T.contiguous(), directions


def scale_directions(
    directions: Tensor,  # (K', T, D)
    cotangents: Tensor,  # (K', T): ∂L/∂stat for the differentiated outputs
    skipped: Tensor,  # (T,) bool: positions whose cotangents do not matter, be they inf or NaN
) -> Tensor:
    """The backward of one pass: dL/d hidden = Σ_k cotangent_k ⊙ direction_k, (T, D).

    Products and sums are in the cotangents' precision (fp16 cannot hold a scaled loss's), by blocks
    of tokens, so that no second (T, D) tensor of that precision is held.
    """
    cotangents = cotangents.masked_fill(skipped, 0)
    total = torch.empty_like(directions[0])
    for start in range(0, total.shape[0], _TOKENS_AT_ONCE):
        here = slice(start, start + _TOKENS_AT_ONCE)
        block = directions[0, here] * cotangents[0, here, None]
        for direction, cotangent in zip(directions[1:], cotangents[1:]):
            block.addcmul_(direction[here].to(block.dtype), cotangent[here, None])
        total[here] = block
    return total


def backward(
    problem: Problem,
    stats: Tensor,  # (K, T)
    norms: Tensor,  # (4, T)
    cotangents: Tensor,  # (K, T)
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of hidden, weight and bias (None where not in `needs`)."""
    # Outputs that receive no gradient are not looked at: their reference is not recomputed.
    names = problem.differentiated
    kept = [problem.outputs.index(name) for name in names]
    scored = problem.scored()
    stats, cotangents = (
        torch.stack([scored.pick(x[k]) for k in kept]) for x in (stats, cotangents)
    )
    norms = torch.stack([scored.pick(norm) for norm in norms])
    targets = scored.pick(problem.targets)
    head, reference = problem.policy, problem.reference if KLS & set(names) else None
    # One copy of the hidden states in the products' precision serves all slices.
    hidden = scored.pick(head.hidden).to(gradient_dtype(head.hidden))
    ref_hidden = None
    if reference is not None:
        ref_hidden = scored.pick(reference.hidden).to(gradient_dtype(reference.hidden))
    grads = _Gradients(problem, scored, needs)
    buffers = _SliceBuffers(problem, scored.count, hidden.dtype, reference is not None)
    for start, stop in buffers.slices():
        raw = project_(buffers.take("raw", stop - start), hidden, head.weight[start:stop])
        ref = None
        if reference is not None and ref_hidden is not None:
            ref_weight = reference.weight[start:stop]
            ref = project_(buffers.take("ref", len(ref_weight)), ref_hidden, ref_weight)
        block = LogitsBlock(
            raw,
            ref,
            problem.bias(head, start, stop),
            problem.bias(reference, start, stop),
            targets,
            problem.scaling,
            first_class=problem.shard.first_class + start,
        )
        dz = buffers.take("dz", stop - start) if buffers.separate_dz else raw
        problem.kernels.gradient(block, names, stats, norms, cotangents, dz)
        grads.add(dz, hidden, start, stop)
    return grads.finish()


class _Gradients:
    """What the slices of the vocabulary add up to, or write once."""

    def __init__(self, problem: Problem, scored: Scored, needs: tuple[bool, bool, bool]) -> None:
        self.problem, self.scored = problem, scored
        self.head = head = problem.policy
        width = head.hidden.shape[1]
        self.hidden = None
        if needs[0]:
            self.hidden = head.hidden.new_zeros(scored.count, width, dtype=problem.dtype)
        self.weight = head.weight.new_empty(head.weight.shape) if needs[1] else None
        self.bias = None
        if needs[2] and head.bias is not None:
            self.bias = head.bias.new_empty(head.bias.shape)

    def add(self, dz: Tensor, hidden: Tensor, start: int, stop: int) -> None:
        """The part of columns start..stop; dz (N, S) by raw logits, hidden (N, D) of dz's dtype."""
        if self.hidden is not None:
            add_hidden_grad_(self.hidden, dz, self.head.weight[start:stop])
        if self.weight is not None:
            weight_grad_(self.weight[start:stop], dz, hidden)
        if self.bias is not None:
            self.bias[start:stop] = dz.sum(0, dtype=compute_dtype(dz.dtype))

    def finish(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """With d hidden back at its positions, 0 at skipped ones."""
        if self.hidden is None:
            return None, self.weight, self.bias
        grad = self.problem.shard.sum_(self.hidden).to(self.head.hidden.dtype)
        if self.scored.positions is not None:
            full = self.head.hidden.new_zeros(self.head.hidden.shape)
            self.scored.put_(full, 0, self.scored.count, grad)
            grad = full
        return grad, self.weight, self.bias


class _SliceBuffers:
    """Logits of one slice of the vocabulary, allocated once and viewed for every slice."""

    def __init__(
        self, problem: Problem, tokens: int, gemm_dtype: torch.dtype, with_ref: bool
    ) -> None:
        self.tokens, self.vocab = tokens, problem.policy.weight.shape[0]
        self.separate_dz = gemm_dtype != problem.dtype  # else dz overwrites the logits
        self.dtypes = {"raw": problem.dtype}
        if with_ref:
            self.dtypes["ref"] = problem.dtype
        if self.separate_dz:
            self.dtypes["dz"] = gemm_dtype
        self.like = problem.policy.hidden
        self.budget = problem.budget or slice_budget(self.like.device)
        self.store: dict[str, Tensor] = {}

    def slices(self) -> list[tuple[int, int]]:
        """Allocates the buffers, too."""
        column = self.tokens * sum(dtype.itemsize for dtype in self.dtypes.values())
        slices = list(vocab_slices(self.vocab, column, self.budget))
        widest = max((stop - start for start, stop in slices), default=0)
        for name, dtype in self.dtypes.items():
            self.store[name] = new_store(self.like, self.tokens, widest, dtype)
        return slices

    def take(self, name: str, width: int) -> Tensor:
        """(N, width), rows padded."""
        return padded_view(self.store[name], self.tokens, width)
