"""The Triton row kernels against the definition: interpreted on a CPU, compiled on a GPU."""

from types import ModuleType

import pytest
import torch

from prefkit_kernels import rows_torch, token_stats
from prefkit_kernels.logits import LogitTransform
from prefkit_kernels.rows_torch import Rows
from tests.kernel_cases import Case, build, call, relative_error, run

rows_triton = pytest.importorskip("prefkit_kernels.rows_triton", reason="Triton is not installed")
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


def test_the_two_row_modules_see_the_same_slice_of_the_vocabulary() -> None:
    """`gradient` on columns 64..128 only, with the target inside, outside, and at its edge."""
    draw = torch.Generator().manual_seed(0)
    z, zr = (torch.randn(4, 200, generator=draw).to(DEVICE) for _ in range(2))
    targets = torch.tensor([64, 127, 128, 3], device=DEVICE)
    outputs = ("logp", "kl")
    stats, norms = torch.empty(2, 4, device=DEVICE), torch.zeros(4, 4, device=DEVICE)
    whole = Rows(z, zr, None, None, targets, LogitTransform())
    rows_torch.statistics(whole, outputs, stats, norms)
    cot = torch.randn(2, 4, generator=draw).to(DEVICE)
    full = torch.empty_like(z)
    rows_torch.gradient(whole, outputs, stats, norms, cot, full)
    for module in (rows_torch, rows_triton):
        part = Rows(
            z[:, 64:128].contiguous(),
            zr[:, 64:128].contiguous(),
            None,
            None,
            targets,
            LogitTransform(),
            first_class=64,
        )
        found = torch.empty(4, 64, device=DEVICE)
        module.gradient(part, outputs, stats, norms, cot, found)
        torch.testing.assert_close(found, full[:, 64:128], atol=1e-6, rtol=1e-5)


def test_gradient_may_overwrite_the_logits_it_reads() -> None:
    z = torch.randn(3, 5000, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    rows = Rows(z, None, None, None, torch.tensor([0, 4999, 17], device=DEVICE), LogitTransform())
    stats, norms = torch.empty(1, 3, device=DEVICE), torch.zeros(4, 3, device=DEVICE)
    rows_triton.statistics(rows, ("logp",), stats, norms)
    ones, apart = torch.ones(1, 3, device=DEVICE), torch.empty_like(z)
    rows_triton.gradient(rows, ("logp",), stats, norms, ones, apart)
    rows_triton.gradient(rows, ("logp",), stats, norms, ones, z)
    assert torch.equal(z, apart)


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
    """Three rows 2³⁰ + 64 apart: the stride fits 32 bits, twice the stride does not.

    The memory between the rows is reserved but never touched.
    """
    if DEVICE == "cuda" and torch.cuda.mem_get_info()[0] < 10 << 30:
        pytest.skip("needs 10 GiB of free GPU memory")
    stride, width = 2**30 + 64, 33
    store = torch.empty(2 * stride + width, device=DEVICE)
    z = store.as_strided((3, width), (stride, 1))
    values = torch.randn(3, width, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    z.copy_(values)
    targets = torch.tensor([3, 32, 7], device=DEVICE)
    rows = Rows(z, None, None, None, targets, LogitTransform())
    stats, norms = torch.empty(1, 3, device=DEVICE), torch.zeros(4, 3, device=DEVICE)
    rows_triton.statistics(rows, ("logp",), stats, norms)
    logp = values.log_softmax(1)
    torch.testing.assert_close(stats[0], logp[[0, 1, 2], targets])
    rows_triton.gradient(rows, ("logp",), stats, norms, torch.ones_like(stats), z)
    expected = torch.nn.functional.one_hot(targets, width) - logp.exp()
    torch.testing.assert_close(z.clone(), expected)


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


@pytest.mark.parametrize(("module", "bound"), [(rows_torch, 3e-4), (rows_triton, 1e-5)])
def test_digits_survive_next_to_the_reference(module: ModuleType, bound: float) -> None:
    """At |d| ≈ 1e-4, KL 5e-9, and no worse a gradient p − p' than plain fp32 softmaxes have."""
    draw = torch.Generator().manual_seed(5)
    z = 3 * torch.randn(16, 5000, generator=draw)
    zr = z + 1e-4 * torch.randn(16, 5000, generator=draw)
    p, q = (x.double().softmax(1) for x in (z, zr))
    kl = (q * (q.log() - p.log())).sum(1)
    rows = Rows(z.to(DEVICE), zr.to(DEVICE), None, None, z.argmax(1).to(DEVICE), LogitTransform())
    stats, norms = torch.empty(1, 16, device=DEVICE), torch.zeros(4, 16, device=DEVICE)
    module.statistics(rows, ("kl",), stats, norms)
    found = torch.empty_like(rows.raw)
    module.gradient(rows, ("kl",), stats, norms, torch.ones_like(stats), found)
    plain = relative_error((z.softmax(1) - zr.softmax(1)).double(), p - q)
    errors = [relative_error(stats[0].double().cpu(), kl), relative_error(found.cpu(), p - q)]
    print(f"KL error {errors[0]:.1e}, gradient {errors[1]:.1e}, plain softmaxes {plain:.1e}")
    assert errors[0] < bound
    assert errors[1] < plain


def test_a_negative_target_is_nan_and_no_other_row() -> None:
    z = torch.randn(2, 40, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    rows = Rows(z, None, None, None, torch.tensor([5, -1], device=DEVICE), LogitTransform())
    stats, norms = torch.empty(1, 2, device=DEVICE), torch.zeros(4, 2, device=DEVICE)
    rows_triton.statistics(rows, ("logp",), stats, norms)
    assert torch.isfinite(stats[0, 0])
    assert stats[0, 1].isnan()


def test_triton_refuses_what_it_cannot_do() -> None:
    problem = build(Case())
    with pytest.raises(ValueError, match="fp64 use backend='torch'"):
        token_stats(problem.hidden, problem.weight, problem.targets, backend="triton")
