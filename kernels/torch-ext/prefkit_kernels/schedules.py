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
        return head.bias[start:stop].to(self.dtype)


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
) -> Tensor:
    """The backward of schedule A: dL/d hidden = Σ_k cotangent_k ⊙ direction_k, (T, D)."""
    if directions.shape[0] == 1:
        return directions[0] * cotangents[0].to(directions.dtype)[:, None]
    total = directions[0] * cotangents[0][:, None]
    for direction, cotangent in zip(directions[1:], cotangents[1:], strict=True):
        total.addcmul_(direction.to(total.dtype), cotangent[:, None])
    return total.to(directions.dtype)


def backward(
    problem: Problem,
    stats: Tensor,  # (K, T)
    norms: Tensor,  # (4, T)
    cotangents: Tensor,  # (K, T)
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Schedule C: gradients of hidden, weight and bias (None where not in `needs`)."""
    head = problem.policy
    places = problem.scored()
    # Outputs that receive no gradient are not looked at: their reference is not recomputed.
    rows_of = [k for k, name in enumerate(problem.outputs) if name in DIFFERENTIABLE]
    names = tuple(problem.outputs[k] for k in rows_of)
    stats, cotangents = (x[rows_of][:, places].contiguous() for x in (stats, cotangents))
    norms, targets = norms[:, places].contiguous(), problem.targets[places]
    everything = len(places) == len(problem.targets)
    hidden = head.hidden if everything else head.hidden[places]
    with_ref = problem.reference is not None and bool({"kl", "reverse_kl"} & set(names))
    ref_hidden = problem.reference.hidden if with_ref and problem.reference else None
    if ref_hidden is not None and not everything:
        ref_hidden = ref_hidden[places]
    vocab = head.weight.shape[0]
    grad_hidden = hidden.new_zeros(hidden.shape, dtype=problem.dtype) if needs[0] else None
    grad_weight = torch.empty_like(head.weight) if needs[1] else None
    grad_bias = torch.empty_like(head.bias) if needs[2] and head.bias is not None else None
    gemm_dtype = gradient_dtype(hidden)
    hidden_for_weight = hidden.to(gemm_dtype)
    separate_dz = gemm_dtype != norms.dtype  # else dz overwrites the logits
    buffers = 1 + separate_dz + with_ref
    column_bytes = len(places) * norms.element_size() * buffers
    for start, stop in vocab_slices(vocab, column_bytes, problem.budget):
        raw = hidden.new_empty(len(places), stop - start, dtype=problem.dtype)
        project_(raw, hidden, head.weight[start:stop])
        ref = None
        if with_ref and problem.reference is not None and ref_hidden is not None:
            ref_weight = problem.reference.weight[start:stop]
            ref = raw.new_empty(len(places), ref_weight.shape[0])
            project_(ref, ref_hidden, ref_weight)
        rows = Rows(
            raw,
            ref,
            problem.bias(head, start, stop),
            problem.bias(problem.reference, start, stop),
            targets,
            problem.transform,
            first_class=start,
        )
        dz = raw.new_empty(raw.shape, dtype=gemm_dtype) if separate_dz else raw
        problem.kernels.gradient(rows, names, stats, norms, cotangents, dz)
        if grad_hidden is not None:
            add_hidden_grad_(grad_hidden, dz, head.weight[start:stop])
        if grad_weight is not None:
            grad_weight[start:stop] = dz.T @ hidden_for_weight
        if grad_bias is not None:
            grad_bias[start:stop] = dz.sum(0, dtype=problem.dtype)
    if grad_hidden is not None:
        grad_hidden = grad_hidden.to(head.hidden.dtype)
        if not everything:
            full = torch.zeros_like(head.hidden)
            grad_hidden = full.index_copy_(0, places, grad_hidden)
    return grad_hidden, grad_weight, grad_bias


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
