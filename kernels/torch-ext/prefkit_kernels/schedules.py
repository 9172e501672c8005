"""From hidden states to statistics and back, with only a budget of logits alive at a time.

N scored tokens, D hidden, V classes; one product over all of it is 2NDV operations ("1 unit").

- forward: chunks of tokens; 1 unit for the policy, 1 for the reference.
- schedule A, frozen head: the forward also computes, in the same chunk, the direction
  v_t = ∂stat_t/∂hidden_t (1 unit an output). The backward only scales rows: nothing is recomputed.
- schedule C, trainable head: the backward goes by slices of the vocabulary. With the normalisers
  saved, slices are independent, so each row of dW is written once and needs no V × D accumulator.

Rows whose target is `ignore_index` are never gathered: a masked token costs nothing.
"""

from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from .chunking import token_chunks, vocab_slices
from .gemm import add_hidden_grad_, compute_dtype, gradient_dtype, project_
from .logits import DIFFERENTIABLE, LogitTransform
from .rows_torch import Rows

_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Head:
    """A linear head and the hidden states that enter it."""

    hidden: Tensor  # (T, D)
    weight: Tensor  # (V, D)
    bias: Tensor | None  # (V,)


@dataclass(frozen=True)
class Problem:
    """Everything that a schedule needs, free of autograd.

    Attributes:
        policy, reference: the two heads; no reference when no output needs one.
        targets: (T,) int64.
        ignore_index: target value of rows that are skipped.
        outputs: names from `logits.OUTPUTS`, in the order of the rows of `stats`.
        transform: scale, softcap, temperature.
        budget: bytes for logits buffers.
        kernels: `rows_torch` or `rows_triton`.
    """

    policy: Head
    reference: Head | None
    targets: Tensor
    ignore_index: int
    outputs: tuple[str, ...]
    transform: LogitTransform
    budget: int
    kernels: ModuleType

    @property
    def dtype(self) -> torch.dtype:
        return compute_dtype(self.policy.hidden.dtype)

    @property
    def directions(self) -> tuple[str, ...]:
        return tuple(name for name in self.outputs if name in DIFFERENTIABLE)

    def scored(self) -> Tensor:
        """(N,) int64 places of the rows that count."""
        return (self.targets != self.ignore_index).nonzero().squeeze(1)

    def bias(self, head: Head | None, start: int, stop: int) -> Tensor | None:
        if head is None or head.bias is None:
            return None
        return head.bias[start:stop].to(self.dtype).contiguous()


def forward(problem: Problem, with_directions: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Statistics, normalisers and, for schedule A, directions.

    Returns:
        stats: (K, T) fp32 | fp64, 0 in skipped rows.
        norms: (4, T): max and log-sum of the policy's rows, then of the reference's.
        directions: (number of differentiable outputs, T, D) in the dtype of hidden; (0, T, D)
            without `with_directions`. 0 in skipped rows.
    """
    hidden = problem.policy.hidden
    names = problem.directions if with_directions else ()
    stats = hidden.new_zeros(len(problem.outputs), hidden.shape[0], dtype=problem.dtype)
    norms = hidden.new_zeros(4, hidden.shape[0], dtype=problem.dtype)
    directions = hidden.new_zeros(len(names), *hidden.shape)
    places = problem.scored()
    buffers = _Buffers(problem, gradients=len(names))
    for start, stop in token_chunks(len(places), buffers.row_bytes, problem.budget):
        here = places[start:stop]
        rows = buffers.fill(here)
        chunk_stats = stats.new_empty(len(problem.outputs), len(here))
        chunk_norms = norms.new_zeros(4, len(here))
        problem.kernels.statistics(rows, problem.outputs, chunk_stats, chunk_norms)
        for k, name in enumerate(names):
            unit = torch.zeros_like(chunk_stats)
            unit[problem.outputs.index(name)] = 1
            dz = buffers.dz(rows, last=k == len(names) - 1)
            problem.kernels.gradient(
                *_restrict(name, rows, problem.outputs, chunk_stats, chunk_norms, unit), dz
            )
            direction = stats.new_zeros(len(here), hidden.shape[1])
            add_hidden_grad_(direction, dz, problem.policy.weight)
            directions[k].index_copy_(0, here, direction.to(hidden.dtype))
        stats.index_copy_(1, here, chunk_stats)
        norms.index_copy_(1, here, chunk_norms)
    return stats, norms, directions


def scale_directions(
    directions: Tensor,  # (K', T, D)
    cotangents: Tensor,  # (K', T): ∂L/∂stat for the differentiable outputs
    skipped: Tensor,  # (T,) bool: rows whose cotangents do not matter, be they inf or NaN
) -> Tensor:
    """The backward of schedule A: dL/d hidden = Σ_k cotangent_k ⊙ direction_k, (T, D).

    Products and sums are in the cotangents' precision (fp16 cannot hold a scaled loss's), by blocks
    of rows, so that no second (T, D) tensor of that precision is held.
    """
    cotangents = cotangents.masked_fill(skipped, 0)
    total = torch.empty_like(directions[0])
    for start in range(0, total.shape[0], _ROWS_AT_ONCE):
        here = slice(start, start + _ROWS_AT_ONCE)
        block = directions[0, here] * cotangents[0, here, None]
        for direction, cotangent in zip(directions[1:], cotangents[1:], strict=True):
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
    """Schedule C: gradients of hidden, weight and bias (None where not in `needs`)."""
    # Outputs that receive no gradient are not looked at: their reference is not recomputed.
    kept = [k for k, name in enumerate(problem.outputs) if name in DIFFERENTIABLE]
    names = tuple(problem.outputs[k] for k in kept)
    places = problem.scored()
    stats, cotangents = (torch.stack([x[k, places] for k in kept]) for x in (stats, cotangents))
    norms, targets = norms[:, places], problem.targets[places]
    with_ref = problem.reference is not None and bool({"kl", "reverse_kl"} & set(names))
    head, reference = problem.policy, problem.reference if with_ref else None
    # One copy of the hidden states in the products' precision serves all slices.
    hidden = _gather(head.hidden, places).to(gradient_dtype(head.hidden))
    ref_hidden = None
    if reference is not None:
        ref_hidden = _gather(reference.hidden, places).to(gradient_dtype(reference.hidden))
    grads = _Gradients(problem, len(places), needs)
    buffers = _SliceBuffers(problem, len(places), hidden.dtype, with_ref)
    for start, stop in buffers.slices(problem.budget):
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
            first_class=start,
        )
        dz = buffers.take("dz", stop - start) if buffers.separate_dz else raw
        problem.kernels.gradient(rows, names, stats, norms, cotangents, dz)
        grads.add(dz, hidden, start, stop)
    return grads.finish(places)


class _Gradients:
    """What the slices of the vocabulary add up to, or write once."""

    def __init__(self, problem: Problem, rows: int, needs: tuple[bool, bool, bool]) -> None:
        self.head = head = problem.policy
        width = head.hidden.shape[1]
        self.hidden = head.hidden.new_zeros(rows, width, dtype=problem.dtype) if needs[0] else None
        self.weight = head.weight.new_empty(head.weight.shape) if needs[1] else None
        self.bias = None
        if needs[2] and head.bias is not None:
            self.bias = head.bias.new_empty(head.bias.shape)

    def add(self, dz: Tensor, hidden: Tensor, start: int, stop: int) -> None:
        """The part of columns start..stop; dz (N, S) by raw logits, hidden (N, D) of dz's dtype."""
        if self.hidden is not None:
            add_hidden_grad_(self.hidden, dz, self.head.weight[start:stop])
        if self.weight is not None:
            self.weight[start:stop] = dz.T @ hidden
        if self.bias is not None:
            self.bias[start:stop] = dz.sum(0, dtype=compute_dtype(dz.dtype))

    def finish(self, places: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Rows back in their places, 0 in skipped ones."""
        if self.hidden is None:
            return None, self.weight, self.bias
        grad = self.hidden.to(self.head.hidden.dtype)
        if len(places) < len(self.head.hidden):
            full = self.head.hidden.new_zeros(self.head.hidden.shape)
            grad = full.index_copy_(0, places, grad)
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
        self.store: dict[str, Tensor] = {}

    def slices(self, budget: int) -> list[tuple[int, int]]:
        column = self.rows * sum(dtype.itemsize for dtype in self.dtypes.values())
        slices = list(vocab_slices(self.vocab, column, budget))
        widest = max(stop - start for start, stop in slices)
        for name, dtype in self.dtypes.items():
            self.store[name] = self.like.new_empty(self.rows * widest, dtype=dtype)
        return slices

    def take(self, name: str, width: int) -> Tensor:
        """(N, width), contiguous."""
        return self.store[name][: self.rows * width].view(self.rows, width)


def _gather(hidden: Tensor, places: Tensor) -> Tensor:
    return hidden if len(places) == len(hidden) else hidden[places]


def _restrict(
    name: str, rows: Rows, outputs: tuple[str, ...], stats: Tensor, norms: Tensor, unit: Tensor
) -> tuple[Rows, tuple[str, ...], Tensor, Tensor, Tensor]:
    """Arguments of `gradient` for one output alone: the others' terms are not computed as zeros."""
    k = outputs.index(name)
    return rows, (name,), stats[k : k + 1], norms, unit[k : k + 1]


class _Buffers:
    """Logits buffers for one chunk of tokens, allocated once and reused for every chunk."""

    def __init__(self, problem: Problem, gradients: int) -> None:
        self.problem = problem
        self.classes = problem.policy.weight.shape[0]
        self.ref_classes = problem.reference.weight.shape[0] if problem.reference else 0
        self.gemm_dtype = gradient_dtype(problem.policy.hidden)
        # The last gradient may overwrite the logits it is made from, if the dtypes agree.
        self.extra_dz = gradients > 1 or (gradients == 1 and self.gemm_dtype != problem.dtype)
        item = 8 if problem.dtype == torch.float64 else 4
        self.row_bytes = item * (self.classes * (1 + self.extra_dz) + self.ref_classes)
        self._store: dict[str, Tensor] = {}

    def _take(self, name: str, rows: int, width: int, dtype: torch.dtype) -> Tensor:
        held = self._store.get(name)
        if held is None or held.shape[0] < rows:
            held = self.problem.policy.hidden.new_empty(rows, width, dtype=dtype)
            self._store[name] = held
        return held[:rows]

    def fill(self, places: Tensor) -> Rows:
        """Raw logits of policy and reference for the tokens at `places`."""
        problem, count = self.problem, len(places)
        raw = self._take("policy", count, self.classes, problem.dtype)
        project_(raw, problem.policy.hidden[places], problem.policy.weight)
        ref = None
        if problem.reference is not None:
            ref = self._take("reference", count, self.ref_classes, problem.dtype)
            project_(ref, problem.reference.hidden[places], problem.reference.weight)
        return Rows(
            raw,
            ref,
            problem.bias(problem.policy, 0, self.classes),
            problem.bias(problem.reference, 0, self.ref_classes),
            problem.targets[places],
            problem.transform,
        )

    def dz(self, rows: Rows, last: bool) -> Tensor:
        if last and self.gemm_dtype == rows.raw.dtype:
            return rows.raw
        return self._take("dz", rows.raw.shape[0], self.classes, self.gemm_dtype)
