"""The operators as torch sees them: opcheck, torch.compile, and no second derivative."""

import pytest
import torch

from prefkit_kernels import token_stats
from prefkit_kernels.core.outputs import OUTPUTS
from prefkit_kernels.token_stats.operator import token_stats_backward_op, token_stats_op
from tests.kernels.kernel_cases import Case, build


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
    return (*heads, codes, [], -100, 1.0, 0.0, 1.0, 1 << 20, -1, "torch", "", 0, 0, 0)


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


@pytest.mark.parametrize("frozen", [False, True], ids=["two passes", "one pass"])
def test_a_second_derivative_is_refused_not_wrong(frozen: bool) -> None:
    problem = build(Case(frozen_head=frozen), torch.float64)
    stats = token_stats(problem.hidden, problem.weight, problem.targets)
    loss = (stats.logp**2).sum()
    (grad,) = torch.autograd.grad(loss, problem.hidden, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad((grad**2).sum(), problem.hidden)


def test_inductor_and_transposed_hidden_states() -> None:
    """The fakes promise contiguous gradients whatever the strides of the inputs."""
    case = Case(tokens=6, outputs=("logp",))
    arguments = list(_arguments(case, ("logp",)))
    arguments[0] = arguments[0].detach().T.contiguous().T.requires_grad_()
    torch.library.opcheck(token_stats_op, (*arguments, False))

    def loss(hidden: torch.Tensor) -> torch.Tensor:
        return token_stats(hidden, arguments[1], arguments[2]).logp.sum()

    eager = arguments[0].detach().clone(memory_format=torch.preserve_format).requires_grad_()
    loss(eager).backward()
    torch.compile(loss, fullgraph=True, backend="inductor")(arguments[0]).backward()
    torch.testing.assert_close(arguments[0].grad, eager.grad)
