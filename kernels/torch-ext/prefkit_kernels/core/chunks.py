"""Tokens chunk by chunk: the logits of a chunk, and the statistics they give.

All passes start here. Buffers are allocated once and reused for every chunk; their size is the
byte budget. Where no KL is wanted the reference's logits are read before the policy's overwrite
them: one buffer, and chunks of twice the tokens.

Where policy and reference are the same head (LoRA) and both logits are there at once, they are one
product of twice the rows. For few tokens a product takes as long as reading the weight, so that is
done also where no KL asks for both, if all tokens fit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .buffers import new_store, padded, padded_view, token_budget, token_chunks, token_tile
from .gemm import gradient_dtype, project_
from .logits import LogitsBlock, add_sums, log_probability, normalise
from .outputs import SUMS
from .problem import HeadInputs, Problem


@dataclass(frozen=True)
class Chunk:
    """One chunk of scored tokens, its logits and statistics.

    Attributes:
        start, stop: numbers among the N scored tokens; C = stop − start.
        group_start: where the first chunk of its group starts.
        ends_group: whether the gradients of the group are now complete.
        block: raw logits of the policy, and of the reference where a KL is wanted.
        stats: (K, C).
        norms: (4, C): maximum and log-sum of policy, of reference.
    """

    start: int
    stop: int
    group_start: int
    ends_group: bool
    block: LogitsBlock
    stats: Tensor
    norms: Tensor


class Chunks:
    """The chunks of a problem.

    Args:
        problem: what to read.
        gradients: how many gradients by the logits will be asked of each chunk.
        without: outputs in `outputs.SUMS` that are left to `gradient`, which has them for free.
        group: chunks whose gradients by the logits are kept side by side, to be multiplied at once.
            They take half the bytes of the logits they are from (where they do not overwrite them),
            so that a product over many tokens needs no logits of all of them.
        keep: whether the gradients by the logits of all tokens are kept, in `kept`.
        names: outputs that those gradients are of.

    Attributes:
        kernels: the functions to use; those of small heads need no logits.
        kept: (N, padded V) with `keep`, in the dtype of the gradient products. Where that is the
            logits' dtype, too, they are computed in this very place.
    """

    def __init__(
        self,
        problem: Problem,
        gradients: int,
        without: tuple[str, ...] = (),
        group: int = 1,
        keep: bool = False,
        names: tuple[str, ...] = (),
    ) -> None:
        self.problem, self.without = problem, without
        self.scored = problem.scored()
        self.classes = problem.policy.weight.shape[0]
        self.ref_classes = problem.reference.weight.shape[0] if problem.reference else 0
        self.gemm_dtype = gradient_dtype(problem.policy.hidden)
        # The last gradient may overwrite the logits it is made from, if the dtypes agree.
        self.extra_dz = gradients > 1 or (gradients == 1 and self.gemm_dtype != problem.dtype)
        self.trained = group > 1
        self.group = group if self.gemm_dtype != problem.dtype and not keep else 1
        self.kept: Tensor | None = None
        if keep:
            like, width = problem.policy.hidden, padded(self.classes)
            self.kept = like.new_empty(self.scored.count, width, dtype=self.gemm_dtype)
            self.extra_dz = False
        self._store: dict[str, Tensor] = {}
        self.kernels = problem.kernels
        self.small = self._takes_small(names)
        self.side_by_side = problem.wants_kl
        self.joint = self._joins()

    @property
    def token_bytes(self) -> int:
        """Bytes of all logits buffers for one token, the same on all processes of a group."""
        classes = padded(self.problem.shard.widest or self.classes)
        ref_classes = padded(self.problem.shard.widest or self.ref_classes)
        if not self.problem.reference:
            ref_classes = 0
        logits = classes + ref_classes if self.side_by_side else max(classes, ref_classes)
        if self.small:
            logits = 0
        elif self.in_place:
            logits = ref_classes if self.side_by_side or ref_classes > classes else 0
        dz = classes * self.extra_dz * self.group
        return logits * self.problem.dtype.itemsize + dz * self.gemm_dtype.itemsize

    @property
    def _budget(self) -> int:
        device = self.problem.policy.hidden.device
        return self.problem.budget or token_budget(device, self.token_bytes, self.trained)

    def _takes_small(self, names: tuple[str, ...]) -> bool:
        """Whether products made twice cost less than logits written and read; if so, takes them."""
        problem = self.problem
        summed = {*SUMS} & set(problem.outputs) - {*self.without}
        small = getattr(problem.kernels, "small_head", None)
        if summed or small is None:
            return False
        heads = [head for head in (problem.policy, problem.reference) if head is not None]
        if not all(
            small.worthwhile(head.hidden, head.weight, names, problem.scaling) for head in heads
        ):
            return False
        self.kernels = small
        return True

    def _joins(self) -> bool:
        """Whether the logits of both are one product; decides `side_by_side` for it."""
        if not self.problem.shares_head or self.in_place or self.small:
            return False
        if not self.side_by_side:
            self.side_by_side = True
            self.side_by_side = self.scored.count * self.token_bytes <= self._budget
        return self.side_by_side

    @property
    def in_place(self) -> bool:
        """Whether the logits of the policy are computed where dz is kept."""
        return self.kept is not None and self.kept.dtype == self.problem.dtype

    def __iter__(self) -> Iterator[Chunk]:
        count, tile = self.scored.count, token_tile(self.problem.policy.hidden.device)
        # Without a buffer of its own a token costs nothing: all of them are one chunk.
        budget = self._budget if self.token_bytes else count
        chunks = list(token_chunks(count, self.token_bytes, budget, tile))
        if chunks:  # groups of nearly equal size, and no buffer for chunks that never come
            self.group = -(-len(chunks) // -(-len(chunks) // self.group))
        for k, (start, stop) in enumerate(chunks):
            last = (k + 1) % self.group == 0 or stop == self.scored.count
            yield self._read(start, stop, chunks[k - k % self.group][0], last)

    def hidden(self, start: int, stop: int) -> Tensor:
        """Hidden states of the policy, start..stop, in the dtype of the gradient products."""
        return self.scored.pick(self.problem.policy.hidden, start, stop).to(self.gemm_dtype)

    def dz(self, chunk: Chunk, last: bool = True) -> Tensor:
        """(C, V) buffer for a gradient by the logits: the logits' own place where that fits."""
        raw = chunk.block.raw
        if self.kept is not None:
            return self.kept[chunk.start : chunk.stop, : self.classes]
        if last and self.gemm_dtype == raw.dtype:
            return raw
        return self.dz_of_group(chunk)[chunk.start - chunk.group_start :]

    def dz_of_group(self, chunk: Chunk) -> Tensor:
        """Gradients by the logits from the first chunk of the group to this one."""
        if self.kept is not None:
            return self.dz(chunk)
        if not self.extra_dz:
            return chunk.block.raw
        if "dz" not in self._store:  # the first chunk is the largest
            self._take("dz", self.group * len(chunk.block.raw), self.classes, self.gemm_dtype)
        return self._take("dz", chunk.stop - chunk.group_start, self.classes, self.gemm_dtype)

    def _read(self, start: int, stop: int, group_start: int, ends_group: bool) -> Chunk:
        problem = self.problem
        targets = self.scored.pick(problem.targets, start, stop)
        stats = problem.policy.hidden.new_zeros(
            len(problem.outputs), stop - start, dtype=problem.dtype
        )
        norms = stats.new_zeros(4, stop - start)
        row = dict(zip(problem.outputs, stats))
        ref = None
        if self.joint:
            self._project_both(start, stop)
        if problem.reference is not None:
            name = "reference" if self.side_by_side else "policy"
            block = self._project(problem.reference, name, start, stop, targets)
            found = normalise(self.kernels, block, problem.shard, norms[2:])
            if "ref_logp" in row:
                row["ref_logp"].copy_(found)
            ref = block if problem.wants_kl else None
        block = self._project(problem.policy, "policy", start, stop, targets, ref)
        found = normalise(self.kernels, block, problem.shard, norms[:2], row.get("mean_logit"))
        if "logp" in row:
            row["logp"].copy_(found)
        if "max_logp" in row:
            row["max_logp"].copy_(log_probability(norms[0], norms[:2]))
        outputs = tuple("" if name in self.without else name for name in problem.outputs)
        add_sums(self.kernels, block, outputs, problem.shard, norms, stats)
        return Chunk(start, stop, group_start, ends_group, block, stats, norms)

    def _project(
        self,
        head: HeadInputs,
        name: str,
        start: int,
        stop: int,
        targets: Tensor,
        ref: LogitsBlock | None = None,
    ) -> LogitsBlock:
        problem, width, count = self.problem, head.weight.shape[0], stop - start
        operands = None
        if self.small:
            operands = (self.scored.pick(head.hidden, start, stop), head.weight)
            raw = torch.empty(count, width, dtype=problem.dtype, device="meta")
        elif self.joint:  # `_project_both` has been here
            both = self._take("both", 2 * count, width, problem.dtype)
            raw = both[count:] if name == "reference" else both[:count]
        elif self.kept is not None and self.in_place and name == "policy" and self._holds(width):
            raw = self.kept[start:stop, :width]
        else:
            raw = self._take(name, count, width, problem.dtype)
        if not (self.joint or self.small):
            project_(raw, self.scored.pick(head.hidden, start, stop), head.weight)
        return LogitsBlock(
            raw,
            None if ref is None else ref.raw,
            problem.bias(head),
            None if ref is None else ref.bias,
            targets,
            problem.scaling,
            problem.shard.first_class,
            operands,
            None if ref is None else ref.operands,
        )

    def _holds(self, width: int) -> bool:
        """Whether logits of so many classes fit where dz is kept, padding included."""
        return self.kept is not None and width <= self.kept.shape[1]

    def _project_both(self, start: int, stop: int) -> None:
        """Logits of the policy, then of the reference, as one product."""
        policy, reference = self.problem.policy, self.problem.reference
        assert reference is not None, "joint means that there are two"
        states = [self.scored.pick(head.hidden, start, stop) for head in (policy, reference)]
        both = self._take("both", 2 * (stop - start), self.classes, self.problem.dtype)
        project_(both, torch.cat(states), policy.weight)

    def _take(self, name: str, rows: int, width: int, dtype: torch.dtype) -> Tensor:
        """(rows, width), rows padded, in a buffer that the largest chunk (the first) allocates."""
        held = self._store.get(name)
        if held is None or held.numel() < rows * padded(width):
            held = self._store[name] = new_store(self.problem.policy.hidden, rows, width, dtype)
        return padded_view(held, rows, width)
