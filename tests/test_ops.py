"""The operators as torch sees them: opcheck, torch.compile, and no second derivative."""

import pytest
import torch

from prefkit_kernels import token_stats
from prefkit_kernels.logits import OUTPUTS
from prefkit_kernels.ops import token_stats_backward_op, token_stats_op
from tests.kernel_cases import Case, build


def _arguments(case: Case, outputs: tuple[str, ...]) -> tuple:
    problem = build(case, torch.float32)
    codes = [OUTPUTS.index(name) for name in outputs]
    heads = (
        problem.hidden,
        problem.weight,
        problem.targets,
        problem.bias,
        problem.ref_hidden,
        problem.ref_weight,
        problem.ref_bias,
    )
    return (*heads, codes, -100, 1.0, 0.0, 1.0, 1 << 20, "torch")


@pytest.mark.parametrize("one_pass", [False, True])
def test_opcheck_forward(one_pass: bool) -> None:
    arguments = _arguments(Case(frozen_head=one_pass, tokens=6), ("logp", "kl"))
    torch.library.opcheck(token_stats_op, (*arguments, one_pass))


def test_opcheck_backward() -> None:
    arguments = _arguments(Case(tokens=6), ("logp", "kl"))
    stats, norms, _ = token_stats_op(*arguments, False)
    plain = [x.detach() if isinstance(x, torch.Tensor) else x for x in arguments]
    cotangents = torch.ones_like(stats)
    torch.library.opcheck(
        token_stats_backward_op,
        (cotangents, stats.detach(), norms.detach(), *plain, True, True, True),
    )


@pytest.mark.parametrize("frozen", [False, True])
def test_compiles_without_a_graph_break(frozen: bool) -> None:
    case = Case(frozen_head=frozen, outputs=("logp", "kl"))

    def loss(problem: object) -> torch.Tensor:
        stats = token_stats(
            problem.hidden * 2,
            problem.weight,
            problem.targets,
            ref_hidden=problem.ref_hidden,
            ref_weight=problem.ref_weight,
            outputs=("logp", "kl"),
        )
        return (stats.logp - 0.3 * stats.kl).sum()

    eager, compiled = build(case, torch.float32), build(case, torch.float32)
    expected = loss(eager)
    found = torch.compile(loss, fullgraph=True, backend="aot_eager")(compiled)
    torch.testing.assert_close(found, expected)
    expected.backward()
    found.backward()
    torch.testing.assert_close(compiled.hidden.grad, eager.hidden.grad)
    if not frozen:
        torch.testing.assert_close(compiled.weight.grad, eager.weight.grad)


def test_a_second_derivative_is_refused_not_wrong() -> None:
    problem = build(Case(), torch.float64)
    stats = token_stats(problem.hidden, problem.weight, problem.targets)
    (grad,) = torch.autograd.grad(stats.logp.sum(), problem.hidden, create_graph=True)
    with pytest.raises(RuntimeError):
        grad.sum().backward()
