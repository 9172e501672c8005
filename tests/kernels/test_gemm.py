"""The matrix products, slice by slice, against fp64."""

import pytest
import torch

from prefkit_kernels.core import gemm
from tests.kernels.kernel_cases import relative_error

ROWS, DIM, VOCAB = 5, 7, 300  # slices of 64 rows of the vocabulary: four whole ones and a rest


@pytest.fixture(autouse=True)
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gemm, "_SLICE_BYTES", 1)


def operands(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """hidden (C, D) and weight (V, D) in `dtype`, dz (C, V) in that of the gradient products."""
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, DIM, generator=draw, dtype=torch.float64).to(dtype)
    weight = torch.randn(VOCAB, DIM, generator=draw, dtype=torch.float64).to(dtype)
    dz = torch.randn(ROWS, VOCAB, generator=draw, dtype=torch.float64)
    return hidden, weight, dz.to(gemm.gradient_dtype(hidden))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_products_equal_fp64_in_every_slice(dtype: torch.dtype) -> None:
    hidden, weight, dz = operands(dtype)
    wide = gemm.compute_dtype(dtype)
    bound = 1e-14 if dtype == torch.float64 else 1e-6
    h, w, z = (x.double() for x in (hidden, weight, dz))
    out = gemm.project_(torch.full((ROWS, VOCAB), torch.nan, dtype=wide), hidden, weight)
    assert relative_error(out.double(), h @ w.T) < bound
    start = torch.randn(ROWS, DIM, dtype=wide)
    for first in (True, False):
        got = gemm.add_hidden_grad_(start.clone(), dz, weight, first=first)
        assert relative_error(got.double(), z @ w + (0 if first else start.double())) < bound
    start = torch.randn(VOCAB, DIM, dtype=wide)
    for first in (True, False):
        got = gemm.add_weight_grad_(start.clone(), dz, hidden.to(wide), first=first)
        assert relative_error(got.double(), z.T @ h + (0 if first else start.double())) < bound


@pytest.mark.parametrize("first", [True, False])
def test_without_fp32_results_a_product_is_rounded_once(first: bool) -> None:
    """The way of GPUs that cannot return fp32: bf16 products, added up in fp32, piece by piece."""
    hidden, _, dz = operands(torch.bfloat16)
    start = torch.ones(VOCAB, DIM)
    got = gemm.add_weight_grad_(start.clone(), dz.bfloat16(), hidden, first=first)
    want = dz.bfloat16().double().T @ hidden.double() + (0 if first else 1)
    assert relative_error(got.double(), want) < 2**-8


def test_a_product_that_is_missing_or_wrong_is_said_with_its_reason(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The silent fallback of a GPU would be several times slower, and nobody would know why."""
    total = torch.ones(2, 2)

    def missing() -> torch.Tensor:
        raise NotImplementedError("no kernel for this\nat all")

    assert gemm._works(lambda: total.fill_(16), (total, 16), "a product", "it is slow")
    assert not caplog.messages
    assert not gemm._works(missing, (total, 16), "a product", "it is slow")
    assert not gemm._works(lambda: total.fill_(3), (total, 16), "a product", "it is slow")
    assert ["no kernel for this" in text for text in caplog.messages] == [True, False]
    assert "it gave 3 for 16" in caplog.messages[1]
    assert all("a product" in text and "it is slow" in text for text in caplog.messages)
