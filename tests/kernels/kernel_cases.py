"""Seeded heads, targets and cotangents for the kernel tests, in any dtype and shape."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from prefkit_kernels import TokenStats, token_stats

ALL = (
    *("logp", "ref_logp", "kl", "reverse_kl", "entropy", "log_sum_sq"),
    *("max_logp", "mean_logit"),
)
WITHOUT_GRADIENT = ("ref_logp", "max_logp", "mean_logit")


def device_of(backend: str) -> str:
    """Where a backend is tested: Triton's kernels on a GPU where one is, interpreted elsewhere."""
    return "cuda" if backend == "triton" and torch.cuda.is_available() else "cpu"


@dataclass(frozen=True, kw_only=True)
class Case:
    """Shapes and options of one call; `near` puts the reference that close to the policy."""

    tokens: int = 13
    dim: int = 24
    vocab: int = 301
    ref_dim: int = 24
    ref_vocab: int = 301
    bias: bool = True
    frozen_head: bool = False
    frozen_hidden: bool = False
    ignored: tuple[int, ...] = (2, 5)
    near: float | None = None
    outputs: tuple[str, ...] = ALL
    options: dict = field(default_factory=dict)


@dataclass
class Problem:
    """The tensors of a case."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    ref_hidden: Tensor
    ref_weight: Tensor
    ref_bias: Tensor | None
    targets: Tensor
    cotangents: dict[str, Tensor]


def build(case: Case, dtype: torch.dtype = torch.float64, device: str = "cpu") -> Problem:
    """The same numbers for every dtype, rounded to it."""
    draw = torch.Generator().manual_seed(7)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    hidden, weight = normal(case.tokens, case.dim), normal(case.vocab, case.dim) * 0.5
    bias = normal(case.vocab)
    if case.near is None:
        ref_hidden = normal(case.tokens, case.ref_dim)
        ref_weight = normal(case.ref_vocab, case.ref_dim) * 0.5
        ref_bias = normal(case.ref_vocab)
    else:
        ref_hidden = hidden + case.near * normal(case.tokens, case.dim)
        ref_weight, ref_bias = weight.clone(), bias.clone()
    classes = min(case.vocab, case.ref_vocab)
    targets = torch.randint(0, classes, (case.tokens,), generator=draw)
    targets[[i for i in case.ignored if i < case.tokens]] = -100
    cotangents = {
        name: normal(case.tokens) for name in case.outputs if name not in WITHOUT_GRADIENT
    }

    def cast(x: Tensor, trainable: bool = False) -> Tensor:
        return x.to(dtype).to(device).requires_grad_(trainable)

    return Problem(
        hidden=cast(hidden, not case.frozen_hidden),
        weight=cast(weight, not case.frozen_head),
        bias=cast(bias, not case.frozen_head) if case.bias else None,
        ref_hidden=cast(ref_hidden),
        ref_weight=cast(ref_weight),
        ref_bias=cast(ref_bias) if case.bias else None,
        targets=targets.to(device),
        cotangents={name: x.to(device) for name, x in cotangents.items()},
    )


def call(problem: Problem, case: Case, backend: str, **options: object) -> TokenStats:
    return token_stats(
        problem.hidden,
        problem.weight,
        problem.targets,
        problem.bias,
        problem.ref_hidden,
        problem.ref_weight,
        problem.ref_bias,
        outputs=case.outputs,
        backend=backend,
        **{**case.options, **options},
    )


def run(
    case: Case, backend: str, dtype: torch.dtype = torch.float64, device: str = "cpu", **options
) -> dict[str, Tensor]:
    """Statistics and gradients of Σ cotangent · stat, all in fp64 on the CPU."""
    problem = build(case, dtype, device)
    stats = call(problem, case, backend, **options)
    found = {name: getattr(stats, name) for name in case.outputs}
    loss = sum((found[name].double() * c).sum() for name, c in problem.cotangents.items())
    if loss.requires_grad:
        loss.backward()
    for name in ("hidden", "weight", "bias"):
        tensor = getattr(problem, name)
        if tensor is not None and tensor.grad is not None:
            found[f"d_{name}"] = tensor.grad
    return {name: x.detach().double().cpu() for name, x in found.items()}


def relative_error(found: Tensor, truth: Tensor) -> float:
    """‖found − truth‖ / ‖truth‖."""
    return float((found - truth).norm() / truth.norm().clamp_min(1e-300))
