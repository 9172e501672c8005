"""The Triton kernels against the definition: interpreted on a CPU, compiled on a GPU."""

import importlib
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from prefkit_kernels import token_stats
from prefkit_kernels.backends import torch as torch_kernels
from prefkit_kernels.core.backend import interpreted
from prefkit_kernels.core.logits import LogitsBlock, LogitScaling
from tests.kernels.kernel_cases import Case, build, call, relative_error, run

TRITON = "prefkit_kernels.backends.triton"
triton_kernels = pytest.importorskip(TRITON, reason="Triton is not installed")
Launch = pytest.importorskip(f"{TRITON}.launch").Launch
tune_rows = pytest.importorskip("benchmarks.tune_rows")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

CASES = {
    "everything, V below one block": Case(),
    "V of several blocks and a rest": Case(vocab=9001, ref_vocab=9001, tokens=5, near=0.05),
    "V one above a block": Case(vocab=4097, ref_vocab=4097, tokens=3, near=0.05),
    "no bias": Case(bias=False),
    "scale, softcap, temperature": Case(
        options={"logit_scale": 0.7, "softcap": 5.0, "temperature": 1.3}
    ),
    "softcap near zero": Case(options={"logit_scale": 1e-3, "softcap": 5.0}),
    "frozen head, one pass": Case(frozen_head=True, outputs=("logp", "ref_logp", "kl")),
    "shorter reference vocabulary": Case(ref_vocab=280, outputs=("logp", "ref_logp", "kl")),
    "shorter policy vocabulary": Case(ref_vocab=310, outputs=("logp", "reverse_kl")),
    "wider than a block of the gradient": Case(dim=300, ref_dim=7),
    "one token": Case(tokens=1, ignored=()),
    "no token": Case(tokens=3, ignored=(0, 1, 2)),
    "tiny budget": Case(options={"memory_budget": 5000}),
}


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_the_definition(name: str) -> None:
    """At most twice the error of the plain torch computation in fp32, plus a few ulp."""
    case = CASES[name]
    truth = run(case, "reference")
    plain = run(case, "reference", torch.float32, DEVICE)
    found = run(case, "triton", torch.float32, DEVICE)
    assert truth.keys() == found.keys()
    for key in truth:
        limit = 2 * relative_error(plain[key], truth[key]) + 6e-7
        assert relative_error(found[key], truth[key]) <= limit, key


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_agrees_with_the_torch_backend_in_low_precision(dtype: torch.dtype) -> None:
    case = Case(outputs=("logp", "ref_logp", "kl"), near=0.05, bias=False)
    ours, torch_rows = (run(case, b, dtype, DEVICE) for b in ("triton", "torch"))
    for key in ours:
        bound = 2 * torch.finfo(dtype).eps if key.startswith("d_") else 2e-6
        assert relative_error(ours[key], torch_rows[key]) < bound, key


def test_nan_in_either_model_is_not_hidden() -> None:
    for which in ("hidden", "ref_hidden"):
        case = Case(ignored=(), outputs=("kl",), tokens=3)
        problem = build(case, torch.float32, DEVICE)
        with torch.no_grad():
            getattr(problem, which)[1] = torch.nan
        stats = call(problem, case, "triton")
        assert stats.kl[1].isnan()
        assert torch.isfinite(stats.kl[[0, 2]]).all()


def test_identical_policy_and_reference_have_kl_exactly_zero() -> None:
    case = Case(near=0.0, outputs=("kl", "reverse_kl"), vocab=5000, ref_vocab=5000)
    stats = call(build(case, torch.float32, DEVICE), case, "triton")
    assert (stats.kl == 0).all()
    assert (stats.reverse_kl == 0).all()


def test_row_offsets_are_64_bit_before_they_are_multiplied() -> None:
    """Rows 2³⁰ + 64 elements apart: the stride fits 32 bits, twice the stride does not.

    The memory between the rows is reserved but never touched.
    """
    if DEVICE == "cuda" and torch.cuda.mem_get_info()[0] < 40 << 30:
        pytest.skip("needs 40 GiB of free GPU memory")
    draw, width = torch.Generator().manual_seed(2), 33
    z, zr, dz = (_far_apart(3, width) for _ in range(3))
    for rows in (z, zr):
        rows.copy_(torch.randn(3, width, generator=draw))
    targets = torch.tensor([3, 32, 7], device=DEVICE)
    block = LogitsBlock(z, zr, None, None, targets, LogitScaling())
    norms = _norms(triton_kernels, block)
    p, q = z.clone().double().softmax(1), zr.clone().double().softmax(1)
    kl_terms = q * (q.log() - p.log())
    sums, kl = torch.empty(1, 3, device=DEVICE), torch.empty(3, device=DEVICE)
    triton_kernels.class_sums(block, ("kl",), norms, sums)
    ones = torch.ones(2, 3, device=DEVICE)
    triton_kernels.gradient(block, ("logp", "kl"), ones, norms, ones, dz, kl)
    for found in (sums[0], kl):
        torch.testing.assert_close(found, kl_terms.sum(1).float())
    expected = torch.nn.functional.one_hot(targets, width) - q
    torch.testing.assert_close(dz.clone(), expected.float())


def _far_apart(count: int, width: int) -> Tensor:
    stride = 2**30 + 64
    store = torch.empty((count - 1) * stride + width, device=DEVICE)
    return store.as_strided((count, width), (stride, 1))


@pytest.mark.parametrize("function", ["normalisers", "class_sums", "gradient"])
def test_more_rows_than_the_other_axes_of_a_grid_have(
    function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """65,538 rows have to lie on axis 0. On a GPU all of them run; interpreted, where a program
    takes milliseconds, the last two."""
    count = 65_538
    if interpreted():
        for name, keep in (("norms", 2), ("combine_norms", 1), ("class_sums", 2), ("gradient", 2)):
            file = {"norms": "normalisers", "combine_norms": "normalisers"}.get(name, name)
            module = importlib.import_module(f"{TRITON}.{file}_kernel")
            kernel = _LastPrograms(getattr(module, f"{name}_kernel"), keep, monkeypatch)
            monkeypatch.setattr(module, f"{name}_kernel", kernel)
    z = torch.linspace(-3, 3, 2 * count, device=DEVICE).view(count, 2)
    zr, targets = z.flip(1), torch.zeros(count, dtype=torch.int64, device=DEVICE)
    block = LogitsBlock(z, zr, None, None, targets, LogitScaling())
    tops = [x.amax(1) for x in (z, zr)]
    log_sums = [(x - top[:, None]).logsumexp(1) for x, top in zip((z, zr), tops, strict=True)]
    norms = torch.stack([tops[0], log_sums[0], tops[1], log_sums[1]])
    p, q = z[-2:].softmax(1), zr[-2:].softmax(1)
    ones, out = torch.ones(1, count, device=DEVICE), torch.empty(3, count, device=DEVICE)
    if function == "normalisers":
        triton_kernels.normalisers(block, out)
        torch.testing.assert_close(out[:2, -2:], norms[:2, -2:])
        assert torch.equal(out[2, -2:], z[-2:, 0])
    elif function == "class_sums":
        triton_kernels.class_sums(block, ("entropy",), norms, out[:1])
        torch.testing.assert_close(out[0, -2:], -(p * p.log()).sum(1))
    else:
        dz = torch.empty_like(z)
        triton_kernels.gradient(block, ("kl",), ones, norms, ones, dz)
        torch.testing.assert_close(dz[-2:], p - q)


class _LastPrograms:
    """An interpreted kernel of which only the last programs of axis 0 run, under their numbers."""

    def __init__(self, kernel: Any, keep: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kernel, self.keep, self.monkeypatch = kernel, keep, monkeypatch

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        from triton.runtime.interpreter import interpreter_builder as builder

        first = grid[0] - self.keep
        assert all(axis <= 65_535 for axis in grid[1:])

        def place(x: int, y: int, z: int) -> None:
            builder.grid_idx = (x + first, y, z)

        def run(**arguments: Any) -> None:
            with self.monkeypatch.context() as patch:
                patch.setattr(builder, "set_grid_idx", place)
                self.kernel[(self.keep, *grid[1:])](**arguments)

        return run


def test_a_bias_may_have_any_stride() -> None:
    """The kernels step through memory one element at a time; a view is not to be read so."""
    case = Case()
    dense, strided, expanded = (build(case, torch.float32, DEVICE) for _ in range(3))
    with torch.no_grad():
        strided.bias = torch.stack([dense.bias, dense.bias + 9], 1)[:, 0]
        expanded.bias = torch.full((1,), 0.5, device=DEVICE).expand(case.vocab)
    assert strided.bias.stride() == (2,)
    expected, found = (call(problem, case, "triton") for problem in (dense, strided))
    assert torch.equal(expected.kl, found.kl)
    expected, found = (call(expanded, case, backend) for backend in ("torch", "triton"))
    torch.testing.assert_close(found.kl, expected.kl, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("module", "bound"), [(torch_kernels, 3e-4), (triton_kernels, 1e-5)])
def test_digits_survive_next_to_the_reference(module: ModuleType, bound: float) -> None:
    """At |d| ≈ 1e-4, KL 5e-9, and no worse a gradient p − p' than plain fp32 softmaxes have."""
    draw = torch.Generator().manual_seed(5)
    z = 3 * torch.randn(16, 5000, generator=draw)
    zr = z + 1e-4 * torch.randn(16, 5000, generator=draw)
    p, q = (x.double().softmax(1) for x in (z, zr))
    kl = (q * (q.log() - p.log())).sum(1)
    block = LogitsBlock(
        z.to(DEVICE), zr.to(DEVICE), None, None, z.argmax(1).to(DEVICE), LogitScaling()
    )
    norms, sums = _norms(module, block), torch.empty(1, 16, device=DEVICE)
    module.class_sums(block, ("kl",), norms, sums)
    found, ones = torch.empty_like(block.raw), torch.ones_like(sums)
    module.gradient(block, ("kl",), sums, norms, ones, found)
    plain = relative_error((z.softmax(1) - zr.softmax(1)).double(), p - q)
    errors = [relative_error(sums[0].double().cpu(), kl), relative_error(found.cpu(), p - q)]
    print(f"KL error {errors[0]:.1e}, gradient {errors[1]:.1e}, plain softmaxes {plain:.1e}")
    assert errors[0] < bound
    assert errors[1] < plain


def _norms(module: ModuleType, block: LogitsBlock) -> Tensor:
    """(4, C) normalisers of both heads."""
    assert block.ref is not None
    out = torch.empty(2, 3, len(block.raw), device=DEVICE)
    module.normalisers(block, out[0])
    module.normalisers(replace(block, raw=block.ref, ref=None), out[1])
    return out[:, :2].reshape(4, -1)


def test_the_tuning_script_runs_its_kernels_and_refuses_without_a_gpu() -> None:
    for kernel in tune_rows.kernels(vocab=100, count=2, device=DEVICE):
        kernel.run(Launch(block=64, warps=1))
    if DEVICE == "cpu":
        with pytest.raises(SystemExit, match="on a machine with a GPU"):
            tune_rows.main([])
    measured = {
        Launch(block, warps): 1.0 for block in tune_rows.BLOCKS for warps in tune_rows.WARPS
    }
    assert tune_rows.table(kernel, 32_000, measured).count("*") == 1


def test_triton_refuses_what_it_cannot_do() -> None:
    problem = build(Case())
    with pytest.raises(ValueError, match="fp64 use backend='torch'"):
        token_stats(problem.hidden, problem.weight, problem.targets, backend="triton")


def test_a_masked_target_has_the_gradient_of_the_definition() -> None:
    """Its log-probability is −inf; still ∂/∂z of it is 1_y − p, on every backend."""
    found = []
    for backend in ("reference", "triton", "torch"):
        problem = build(Case(outputs=("logp",)), torch.float32, DEVICE)
        problem.bias.data[problem.targets[0]] = -torch.inf
        token_stats(
            problem.hidden, problem.weight, problem.targets, problem.bias, backend=backend
        ).logp.sum().backward()
        found.append((problem.hidden.grad, problem.weight.grad))
    for grads in found[1:]:
        for ours, want in zip(grads, found[0], strict=True):
            assert relative_error(ours, want) < 2e-6


def test_targets_may_be_strided() -> None:
    problem = build(Case(ignored=()), torch.float32, DEVICE)
    table = torch.stack([problem.targets, problem.targets * 0], dim=1)
    pair = [
        token_stats(problem.hidden, problem.weight, targets, backend="triton").logp
        for targets in (problem.targets, table[:, 0])
    ]
    assert torch.equal(*pair)
