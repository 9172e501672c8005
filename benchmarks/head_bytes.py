"""How many bytes do one and two passes of the head hold at most, at sizes that fit no CPU?

    python -m benchmarks.head_bytes                     the 70B head: figures of docs/kernels.md
    python -m benchmarks.head_bytes --dim 4096 --tokens 8192 64

Counted, not measured: the passes run on tensors without data, with the sizes of a GPU's chunks,
with matrix products and kernels that do nothing, and every block of memory is added up while it is
alive. So it counts what the passes ask torch for, in their own code, without an allocator's
rounding or a library's workspace. Inputs and the gradient of the head, which each of them owes,
are not counted.
"""

import argparse
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.no_rows import NoRows
from prefkit_kernels.core import chunks
from prefkit_kernels.core import problem as problem_module
from prefkit_kernels.core.logits import LogitScaling
from prefkit_kernels.core.problem import HeadInputs, Problem
from prefkit_kernels.pair_scores import keep_dz, one_pass
from prefkit_kernels.token_stats import passes as token_passes
from prefkit_kernels.vocab_parallel import Shard

_OUTPUTS = {"dpo": ("logp", "ref_logp"), "tdpo2": ("logp", "ref_logp", "kl")}
_PRODUCTS = {
    chunks: ("project_",),
    one_pass: ("add_hidden_grad_", "add_weight_grad_"),
    token_passes: ("project_", "add_hidden_grad_", "weight_grad_"),
    keep_dz: ("weight_grad_",),
}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One call: a loss and its sizes; `frozen` heads get no gradient."""

    loss: str
    tokens: int
    pairs: int = 1
    frozen: bool = False
    dim: int = 8192
    vocab: int = 128_256


class Live(TorchDispatchMode):
    """Bytes of the memory that is alive under it, now and at most."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        # A storage keeps its Python object, so that each is counted once, whatever views it has.
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()
        self._inputs = [tensor.untyped_storage() for tensor in inputs]
        self._seen.update(self._inputs)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._seen:
            return
        self._seen.add(storage)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, size)

    def _gone(self, size: int) -> None:
        self.now -= size


def peak(shape: Shape, passes: str) -> int:
    """Bytes at the peak of forward and backward, without the inputs and the gradient of the head.

    Args:
        passes: "one_pass", "keep_dz" or "two_pass".
    Raises:
        ValueError: several pairs with a trainable head in "one_pass".
    """
    if passes == "one_pass" and shape.pairs > 1 and not shape.frozen:
        raise ValueError("one pass with a trainable head is for one pair")
    with _nothing_computed():
        problem = _problem(shape)
        heads = (problem.policy, problem.reference)
        inputs = [x for head in heads if head for x in (head.hidden, head.weight)]
        live = Live([*inputs, problem.targets])
        with live, torch.no_grad():
            found = _step(problem, shape, passes)
        assert all(x is None or x.dtype == torch.bfloat16 for x in found)
        owed = 0 if shape.frozen else shape.vocab * shape.dim * 2
        return live.peak - owed


def _problem(shape: Shape) -> Problem:
    def bf16(*size: int) -> Tensor:
        return torch.empty(size, dtype=torch.bfloat16, device="meta")

    heads = [
        HeadInputs(bf16(shape.tokens, shape.dim), bf16(shape.vocab, shape.dim), None)
        for _ in range(2)
    ]
    return Problem(
        policy=heads[0],
        reference=heads[1],
        targets=torch.empty(shape.tokens, dtype=torch.int64, device="meta"),
        ignore_index=-100,
        outputs=_OUTPUTS[shape.loss],
        scaling=LogitScaling(),
        budget=0,
        num_scored=shape.tokens,
        kernels=NoRows,  # type: ignore[arg-type]  # a namespace with the module's functions
        shard=Shard(),
    )


def _step(problem: Problem, shape: Shape, passes: str) -> tuple[Tensor | None, Tensor | None]:
    """d_hidden and d_weight, as the operators and their autograd make them."""
    needs = (True, not shape.frozen, False)
    tokens, dtype = shape.tokens, torch.bfloat16
    if passes == "two_pass":
        stats, norms, _ = token_passes.forward(problem, False)
        made = token_passes.backward(problem, stats, norms, torch.ones_like(stats), needs)
        return made[0], made[1]
    coefficients = problem.targets.new_ones(2, tokens, dtype=torch.float32)
    pairs = torch.zeros_like(problem.targets)
    keep = passes == "keep_dz"
    _, _, d_hidden, d_weight, _, dz, scale = one_pass.pair_scores(
        problem, pairs, coefficients, shape.pairs, needs, keep
    )
    factors = coefficients[0]
    assert d_hidden is not None, "it is needed"
    assert scale is not None, "it is always made"
    d_hidden = _rows_scaled(d_hidden, factors)
    if dz is not None:
        settings = (problem.ignore_index, shape.vocab, dtype, False)
        hidden = problem.policy.hidden
        d_weight, _ = keep_dz.gradients(dz, scale, hidden, problem.targets, factors, *settings)
    elif d_weight is not None:
        d_weight = _rows_scaled(d_weight, factors[:1].expand(len(d_weight)))
    return d_hidden, d_weight


def _rows_scaled(direction: Tensor, factors: Tensor) -> Tensor:
    out = direction.new_empty(direction.shape, dtype=torch.bfloat16)
    return keep_dz.scale_rows(direction, factors, out)


@contextmanager
def _nothing_computed() -> Iterator[None]:
    with ExitStack() as stack:
        for module in (chunks, token_passes, keep_dz):  # as on a GPU
            kind = mock.patch.object(module, "gradient_dtype", lambda hidden: hidden.dtype)
            stack.enter_context(kind)
        stack.enter_context(mock.patch.object(problem_module, "refuse_unless", _nothing))
        for module, names in _PRODUCTS.items():
            for name in names:
                stack.enter_context(mock.patch.object(module, name, _nothing))
        yield


def _nothing(out: Tensor, *_: Any, **__: Any) -> Tensor:
    return out


def table(shapes: Sequence[Shape]) -> str:
    """Markdown: a row a shape, a column for one pass, dz kept, two passes; in GB = 10⁹ bytes."""
    lines = [
        "| tokens | pairs | head | loss | one pass | dz kept | two passes |",
        "| --- " * 7 + "|",
    ]
    for shape in shapes:
        cells = []
        for passes in ("one_pass", "keep_dz", "two_pass"):
            impossible = shape.pairs > 1 and not shape.frozen and passes == "one_pass"
            if impossible or (shape.frozen and passes == "keep_dz"):
                cells.append("–")
            else:
                cells.append(f"{peak(shape, passes) / 1e9:.2f}")
        head = "frozen" if shape.frozen else "trainable"
        first = f"| {shape.tokens:,} | {shape.pairs} | {head} | {shape.loss.upper()} | "
        lines.append(first + " | ".join(cells) + " |")
    return "\n".join(lines)


def _size(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number ≥ 1, got {text}")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dim", type=_size, default=8192, help="width of the head (8192)")
    parser.add_argument("--vocab", type=_size, default=128_256, help="classes (128256)")
    parser.add_argument(
        "--tokens", type=_size, nargs="+", default=[16_384, 64], help="scored tokens (16384 64)"
    )
    options = parser.parse_args(arguments)
    sizes = {"dim": options.dim, "vocab": options.vocab}
    shapes = [
        Shape(loss=loss, tokens=tokens, pairs=pairs, frozen=frozen, **sizes)
        for tokens in options.tokens
        for frozen in (False, True)
        for pairs in (1, 8)
        for loss in _OUTPUTS
    ]
    print(table(shapes))


if __name__ == "__main__":
    main()
