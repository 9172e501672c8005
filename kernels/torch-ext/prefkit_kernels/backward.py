"""Two passes: the backward of `token_stats` for a trainable head and any cotangents.

By slices of the vocabulary: with the normalisers saved, slices are independent, so each row of dW
is written once and needs no V × D accumulator. The logits are recomputed (1 unit, 1 more for the
reference where a KL has a gradient); dH and dW cost 1 unit each.
"""

import torch
from torch import Tensor

from .buffers import new_store, rows_of
from .chunking import slice_budget, vocab_slices
from .gemm import (
    add_hidden_grad_,
    compute_dtype,
    gradient_dtype,
    project_,
    weight_grad_,
)
from .logits import DIFFERENTIABLE, KLS
from .problem import Problem, Scored
from .rows import Rows


def backward(
    problem: Problem,
    stats: Tensor,  # (K, T)
    norms: Tensor,  # (4, T)
    cotangents: Tensor,  # (K, T)
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of hidden, weight and bias (None where not in `needs`)."""
    # Outputs that receive no gradient are not looked at: their reference is not recomputed.
    kept = [k for k, name in enumerate(problem.outputs) if name in DIFFERENTIABLE]
    names = tuple(problem.outputs[k] for k in kept)
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
        rows = Rows(
            raw,
            ref,
            problem.bias(head, start, stop),
            problem.bias(reference, start, stop),
            targets,
            problem.transform,
            first_class=problem.shard.first_class + start,
        )
        dz = buffers.take("dz", stop - start) if buffers.separate_dz else raw
        problem.kernels.gradient(rows, names, stats, norms, cotangents, dz)
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
        """Rows back in their places, 0 in skipped ones."""
        if self.hidden is None:
            return None, self.weight, self.bias
        grad = self.problem.shard.sum_(self.hidden).to(self.head.hidden.dtype)
        if self.scored.places is not None:
            full = self.head.hidden.new_zeros(self.head.hidden.shape)
            self.scored.put_(full, 0, self.scored.count, grad)
            grad = full
        return grad, self.weight, self.bias


class _SliceBuffers:
    """Logits of one slice of the vocabulary, allocated once and viewed for every slice."""

    def __init__(
        self, problem: Problem, rows: int, gemm_dtype: torch.dtype, with_ref: bool
    ) -> None:
        self.rows, self.vocab = rows, problem.policy.weight.shape[0]
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
        column = self.rows * sum(dtype.itemsize for dtype in self.dtypes.values())
        slices = list(vocab_slices(self.vocab, column, self.budget))
        widest = max((stop - start for start, stop in slices), default=0)
        for name, dtype in self.dtypes.items():
            self.store[name] = new_store(self.like, self.rows, widest, dtype)
        return slices

    def take(self, name: str, width: int) -> Tensor:
        """(N, width), rows padded."""
        return rows_of(self.store[name], self.rows, width)
