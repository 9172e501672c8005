"""The kernels over logits of both backends, directly, against definitions in fp64."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from prefkit_kernels.backends import torch as torch_kernels
from prefkit_kernels.core.backend import interpreted
from prefkit_kernels.core.buffers import is_padded
from prefkit_kernels.core.logits import LogitsBlock, LogitScaling
from tests.kernels.kernel_cases import relative_error
from tests.kernels.row_cases import RowCase, build, cast, define, found_by, slices

TRITON = "prefkit_kernels.backends.triton"
triton_kernels = pytest.importorskip(TRITON, reason="Triton is not installed")
Launch = pytest.importorskip(f"{TRITON}.launch").Launch
COMBINED = pytest.importorskip(f"{TRITON}.normalisers_kernel").COMBINED
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# Interpreted, rows in buffers have the very bits of others, which another test holds them to.
PADDINGS = {"contiguous": None} | ({"in buffers": torch.nan} if DEVICE == "cuda" else {})
# Blocks of 64 columns make several blocks and partial results of a small vocabulary.
MANY_BLOCKS = {"how": Launch(block=64, warps=1)}
MODULES: dict[str, tuple[Any, dict[str, Any]]] = {
    "torch": (torch_kernels, {}),
    "triton": (triton_kernels, {}),
    "triton, many blocks": (triton_kernels, MANY_BLOCKS),
}
CASES = {
    "whole rows": RowCase(),
    "three slices": RowCase(cuts=(64, 65)),
    "scale, softcap, temperature, bias": RowCase(
        scaling=LogitScaling(0.7, 5.0, 1.3), bias=True, cuts=(100,)
    ),
    "temperature alone": RowCase(scaling=LogitScaling(temperature=0.8)),
    "offset of 1e4": RowCase(offset=1e4, cuts=(128,)),
    "far from the reference": RowCase(near=None),
    "shorter reference": RowCase(ref_vocab=150, outputs=("logp", "kl"), cuts=(64, 200)),
    "masked classes, a slice of them alone": RowCase(masked=(100, 170), cuts=(100, 164)),
    "one row": RowCase(count=1, outputs=("kl", "log_sum_sq")),
    "log-probability alone": RowCase(outputs=("logp",), cuts=(128,)),
}


@pytest.mark.parametrize("padding", PADDINGS.values(), ids=PADDINGS)
@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("name", CASES)
def test_agrees_with_the_definition(name: str, module: str, padding: float | None) -> None:
    """At most twice the error of the plain fp32 computation, plus a few ulp."""
    case = CASES[name]
    block = build(case)
    draw = torch.Generator().manual_seed(4)
    cotangents = torch.randn(len(case.outputs), case.count, generator=draw)
    truth = define(block, case, cotangents.double())
    plain = define(cast(block, torch.float32), case, cotangents)
    functions, how = MODULES[module]
    narrow = cast(block, torch.float32, DEVICE)
    found = found_by(functions, narrow, case, cotangents.to(DEVICE), how, padding)
    if "kl" in truth:
        truth["kl in one read"], plain["kl in one read"] = truth["kl"], plain["kl"]
    assert truth.keys() == found.keys()
    for key in truth:
        limit = 2 * relative_error(plain[key].double(), truth[key]) + 6e-7
        assert relative_error(found[key].double().cpu(), truth[key]) <= limit, key


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("name", CASES)
def test_what_stands_in_the_padding_changes_no_bit(name: str, module: str) -> None:
    """Rows of buffers are read beyond their last class. A compiled kernel may add up contiguous
    rows in another order, because its loads are as wide as the rows allow: there rows in buffers
    are compared with each other."""
    case = CASES[name]
    block, cotangents = build(case), torch.ones(len(case.outputs), case.count, device=DEVICE)
    functions, how = MODULES[module]
    narrow = cast(block, torch.float32, DEVICE)
    paddings = (0.0, torch.nan) if DEVICE == "cuda" else (None, torch.nan)
    found = [found_by(functions, narrow, case, cotangents, how, p) for p in paddings]
    for key in found[0]:
        assert torch.equal(found[0][key], found[1][key]), key


def test_only_the_rest_of_a_row_of_its_own_is_padding() -> None:
    """Where the next elements may be somebody's data nothing is written."""
    store = torch.zeros(3, 48)
    assert is_padded(store[:, :33])
    assert not is_padded(store[:, :32])  # the next 16 are no padding of 32
    assert not is_padded(store[:, :48])
    assert not is_padded(store[:, 20:47].contiguous())
    assert is_padded(store[:2, :40])
    assert not is_padded(store[1:, 15:48])  # the last row's padding would lie beyond the memory
    assert is_padded(store.view(-1)[:48].view(1, 48)[:, :33])


def test_one_row_fills_many_programs() -> None:
    """40 blocks of one row: more partial results than a tile combines at once."""
    case = RowCase(count=1, vocab=2500, ref_vocab=2500, outputs=("logp", "kl"))
    assert 64 * COMBINED < 2500
    block, cotangents = build(case), torch.ones(2, 1)
    truth = define(block, case, cotangents.double())
    narrow = cast(block, torch.float32, DEVICE)
    found = found_by(triton_kernels, narrow, case, cotangents.to(DEVICE), MANY_BLOCKS)
    for key in truth:
        assert relative_error(found[key].double().cpu(), truth[key]) < 2e-6, key


@pytest.mark.parametrize("module", MODULES)
def test_a_target_outside_the_slice_is_minus_infinity_and_a_negative_one_nan(module: str) -> None:
    functions, how = MODULES[module]
    block = cast(build(RowCase(count=3)), torch.float32, DEVICE)
    block = replace(block, targets=torch.tensor([70, 200, -1], device=DEVICE))
    found = []
    for part in slices(block, (64, 128)):
        out = torch.empty(3, 3, device=DEVICE)
        functions.normalisers(part, out, **how)
        found.append(out[2])
    none = torch.full((2,), -torch.inf, device=DEVICE)
    assert torch.equal(found[0][:2], none)
    assert found[1][0] == block.raw[0, 70]
    assert found[1][1] == -torch.inf
    assert found[2][1] == block.raw[1, 200]
    assert all(values[2].isnan() for values in found)


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_nan_and_inf_stay_in_their_own_row(module: str, poison: float) -> None:
    case = RowCase(count=3)
    functions, how = MODULES[module]
    block = cast(build(case), torch.float32, DEVICE)
    block.raw[1, 40] = poison
    cotangents = torch.ones(len(case.outputs), 3, device=DEVICE)
    found = found_by(functions, block, case, cotangents, how)
    for name, values in found.items():
        if name in ("tops", "target", "z_sum"):  # of these, infinity may be the right answer
            continue
        values = values[0] if name == "log_sums" else values[0] if name != "dz" else values.T
        values = values.reshape(-1, 3)
        assert values[:, 1].isnan().any(), name
        assert torch.isfinite(values[:, [0, 2]]).all(), name


@pytest.mark.parametrize("module", MODULES)
def test_kl_is_infinite_where_only_the_reference_has_a_class(module: str) -> None:
    case = RowCase(count=2, vocab=290, ref_vocab=301, outputs=("logp", "kl", "reverse_kl"))
    functions, how = MODULES[module]
    block = cast(build(case), torch.float32, DEVICE)
    found = found_by(functions, block, case, torch.ones(3, 2, device=DEVICE), how)
    assert found["kl"].isposinf().all()
    assert found["kl in one read"].isposinf().all()
    assert torch.isfinite(found["reverse_kl"]).all()
    assert torch.isfinite(found["dz"]).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_triton_gradient_of_low_precision_is_the_exact_one_rounded(dtype: torch.dtype) -> None:
    block = cast(build(RowCase()), torch.float32, DEVICE)
    gradient = _tdpo_gradient(triton_kernels, block, MANY_BLOCKS)
    exact, rounded = torch.empty_like(block.raw), torch.empty_like(block.raw, dtype=dtype)
    kl, kl_again = torch.empty(3, device=DEVICE), torch.empty(3, device=DEVICE)
    gradient(out=exact, kl_sum=kl)
    gradient(out=rounded, kl_sum=kl_again)
    if dtype == torch.bfloat16 and interpreted():  # which cuts the digits off
        exact = (exact.view(torch.int32) & -(1 << 16)).view(torch.float32)
    assert torch.equal(rounded, exact.to(dtype))
    assert torch.equal(kl, kl_again)


@pytest.mark.parametrize("module", MODULES)
def test_the_gradient_may_overwrite_the_logits_and_is_the_same_each_time(module: str) -> None:
    functions, how = MODULES[module]
    block = cast(build(RowCase()), torch.float32, DEVICE)
    gradient = _tdpo_gradient(functions, block, how)
    apart, kl = torch.empty_like(block.raw), torch.empty(3, device=DEVICE)
    gradient(out=apart, kl_sum=kl)
    kl_again = torch.empty_like(kl)
    gradient(out=block.raw, kl_sum=kl_again)
    assert torch.equal(block.raw, apart)
    assert torch.equal(kl, kl_again)


def _tdpo_gradient(functions: Any, block: LogitsBlock, how: dict[str, Any]) -> Any:
    """`gradient` of these rows for logp and KL, waiting for `out` and `kl_sum`."""
    assert block.ref is not None
    count = len(block.raw)
    norms = torch.empty(2, 3, count, device=DEVICE)
    for out, raw in zip(norms, (block.raw, block.ref), strict=True):
        functions.normalisers(
            replace(block, raw=raw, ref=None, bias=None, ref_bias=None), out, **how
        )
    cotangents = torch.linspace(-1, 1, 2 * count, device=DEVICE).view(2, count)
    whole = norms[:, :2].reshape(4, count)
    stats = torch.full_like(cotangents, torch.nan)  # of these two it is not read
    return partial(functions.gradient, block, ("logp", "kl"), stats, whole, cotangents, **how)
