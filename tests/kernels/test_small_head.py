"""Normalisers and gradients from hidden states and weight, against definitions in fp64."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from prefkit_kernels.core import chunks
from prefkit_kernels.core.backend import interpreted
from prefkit_kernels.core.buffers import new_store, padded_view
from prefkit_kernels.core.logits import LogitsBlock, LogitScaling
from tests.kernels.kernel_cases import relative_error
from tests.kernels.row_cases import PLAIN, RowCase, define, without_infinity

SMALL_HEAD = "prefkit_kernels.backends.triton.small_head"
small_head = pytest.importorskip(SMALL_HEAD, reason="Triton is not installed")
launch = pytest.importorskip(f"{SMALL_HEAD}.launch")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INF = torch.inf

# Small tiles: several blocks each way, and several blocks of D.
SMALL = {"how": launch.Tile(tokens=16, classes=128, depth=64, warps=2, stages=2)}
HALVES = {"how": launch.Tile(tokens=16, classes=128, depth=32, warps=2, stages=2, halves=True)}


@dataclass(frozen=True, kw_only=True)
class HeadCase:
    """Operands of two heads; `near` puts the reference's that close to the policy's."""

    count: int = 19
    dim: int = 80
    vocab: int = 301
    ref_dim: int = 80
    ref_vocab: int = 301
    near: float | None = 0.05
    bias: bool = False
    masked: tuple[int, int] | None = None  # classes that both biases mask
    scaling: LogitScaling = PLAIN
    outputs: tuple[str, ...] = ("logp", "kl")
    cuts: tuple[int, ...] = ()  # where slices of the vocabulary meet


Operands = tuple[Tensor, Tensor, Tensor | None]  # hidden (C, D), weight (S, D), bias (S,)


@dataclass(frozen=True)
class Heads:
    """Policy and reference, and the targets."""

    policy: Operands
    reference: Operands
    targets: Tensor


def block_of(
    policy: Operands,
    reference: Operands | None,
    targets: Tensor,
    scaling: LogitScaling,
    first_class: int,
) -> LogitsBlock:
    """Operands as `Chunks` gives them to the kernels: of the logits there is the shape alone."""
    ref, ref_bias = (reference[:2], reference[2]) if reference else (None, None)
    shape = torch.empty(len(policy[0]), len(policy[1]), device="meta")
    block = LogitsBlock(shape, None, policy[2], ref_bias, targets, scaling, first_class)
    return replace(block, operands=policy[:2], ref_operands=ref)


CASES = {
    "neither tile divides": (HeadCase(), SMALL),
    "half a tile at a time": (HeadCase(), HALVES),
    "the launch of a GPU": (HeadCase(count=3), {}),
    "D of 576, three slices": (HeadCase(dim=576, ref_dim=576, cuts=(64, 65)), SMALL),
    "another D and a shorter vocabulary": (
        HeadCase(ref_dim=24, ref_vocab=150, near=None, cuts=(64, 200)),
        SMALL,
    ),
    "one row": (HeadCase(count=1, near=None), SMALL),
    "scale, softcap, temperature, bias": (
        HeadCase(scaling=LogitScaling(0.7, 5.0, 1.3), bias=True, cuts=(100,)),
        HALVES,
    ),
    "temperature alone": (HeadCase(scaling=LogitScaling(temperature=0.8)), SMALL),
    "masked classes, a slice of them alone": (HeadCase(masked=(100, 170), cuts=(100, 164)), SMALL),
    "masked under a softcap": (
        HeadCase(masked=(60, 70), scaling=LogitScaling(softcap=5.0)),
        SMALL,
    ),
    "log-probability alone": (HeadCase(outputs=("logp",), cuts=(128,)), SMALL),
    "KL alone": (HeadCase(outputs=("kl",)), HALVES),
    "far from the reference": (HeadCase(near=None), SMALL),
    "next to the reference": (HeadCase(near=1e-2), HALVES),
}
WITH_DTYPES = [
    *((name, torch.bfloat16) for name in CASES),
    *((name, torch.float16) for name in ("neither tile divides", "next to the reference")),
    *((name, torch.float32) for name in ("half a tile at a time", "the launch of a GPU")),
]


def build(case: HeadCase, dtype: torch.dtype) -> Heads:
    draw = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    hidden, weight = normal(case.count, case.dim), 3 * case.dim**-0.5 * normal(case.vocab, case.dim)
    ref_hidden = normal(case.count, case.ref_dim)
    ref_weight = 3 * case.ref_dim**-0.5 * normal(case.ref_vocab, case.ref_dim)
    if case.near is not None:  # rounded apart, so no nearer than the dtype allows
        ref_hidden, ref_weight = hidden + case.near * ref_hidden, weight.clone()
    biases: list[Tensor | None] = [None, None]
    if case.bias:
        biases = [normal(case.vocab), normal(case.ref_vocab)]
    if case.masked is not None:
        both = torch.zeros(case.vocab), torch.zeros(case.ref_vocab)
        for bias in both:
            bias[slice(*case.masked)] = -INF
        biases = list(both)
    shared = min(case.vocab, case.ref_vocab)
    targets = torch.randint(0, shared, (case.count,), generator=draw)
    if case.masked is not None:
        targets = torch.where((targets >= 60) & (targets < 170), targets % 60, targets)
    targets[-1] = shared - 1
    if case.count > 2:
        targets[:2] = torch.tensor([0, 59])
    operands = (hidden, weight), (ref_hidden, ref_weight)
    policy, reference = (
        (h.to(dtype).to(DEVICE), w.to(dtype).to(DEVICE), None if b is None else b.to(DEVICE))
        for (h, w), b in zip(operands, biases, strict=True)
    )
    return Heads(policy, reference, targets.to(DEVICE))


def logits_of(heads: Heads, scaling: LogitScaling, dtype: torch.dtype) -> LogitsBlock:
    """The same as logits: plain products in `dtype`, on the CPU."""
    raws, biases = [], []
    for hidden, weight, bias in (heads.policy, heads.reference):
        raws.append(hidden.cpu().to(dtype) @ weight.cpu().to(dtype).T)
        biases.append(None if bias is None else bias.cpu().to(dtype))
    return LogitsBlock(*raws, *biases, heads.targets.cpu(), scaling)


def slices(heads: Heads, cuts: tuple[int, ...]) -> Iterator[tuple[int, Heads]]:
    """First class and heads of each slice of the vocabulary."""
    widest = max(heads.policy[1].shape[0], heads.reference[1].shape[0])
    for start, stop in pairwise((0, *cuts, widest)):
        policy, reference = (
            (h, w[start:stop], None if b is None else b[start:stop])
            for h, w, b in (heads.policy, heads.reference)
        )
        yield start, replace(heads, policy=policy, reference=reference)


def found_by(
    heads: Heads, case: HeadCase, cotangents: Tensor, how: dict[str, Any]
) -> dict[str, Tensor]:
    """What `define` gives, from the kernels: slices put together."""
    parts = list(slices(heads, case.cuts))
    norms = torch.full((4, case.count), torch.nan, device=DEVICE)
    target = z_sum = None
    for k, name in enumerate(("policy", "reference")):
        each = torch.full((len(parts), 4, case.count), torch.nan, device=DEVICE)
        for out, (first, part) in zip(each, parts, strict=True):
            block = block_of(getattr(part, name), None, part.targets, case.scaling, first)
            small_head.normalisers(block, out, **how)
        top = each[:, 0].amax(0)
        total = (each[:, 1] + torch.where(each[:, 0] == -INF, -INF, each[:, 0] - top)).exp()
        norms[2 * k], norms[2 * k + 1] = top, total.sum(0).log()
        target = each[:, 2].amax(0) if target is None else target
        z_sum = without_infinity(each[:, 3]) if z_sum is None else z_sum
    kl_sums = torch.full((len(parts), case.count), torch.nan, device=DEVICE)
    dz = []
    for out, (first, part) in zip(kl_sums, parts, strict=True):
        dz.append(torch.full((case.count, part.policy[1].shape[0]), torch.nan, device=DEVICE))
        kl_sum = out if "kl" in case.outputs else None
        block = block_of(part.policy, part.reference, part.targets, case.scaling, first)
        stats = torch.full_like(cotangents, torch.nan)  # not read
        small_head.gradient(block, case.outputs, stats, norms, cotangents, dz[-1], kl_sum, **how)
    assert target is not None
    assert z_sum is not None
    found = {"tops": norms[::2], "log_sums": norms[1::2], "target": target, "dz": torch.cat(dz, 1)}
    found["z_sum"] = z_sum
    return {**found, **({"kl": kl_sums} if "kl" in case.outputs else {})}


def row_case(case: HeadCase) -> RowCase:
    return RowCase(count=case.count, scaling=case.scaling, outputs=case.outputs, cuts=case.cuts)


@pytest.mark.parametrize(("name", "dtype"), WITH_DTYPES)
def test_agrees_with_the_definition(name: str, dtype: torch.dtype) -> None:
    """At most twice the error of the plain computation in fp32, plus a few ulp."""
    case, how = CASES[name]
    heads = build(case, dtype)
    draw = torch.Generator().manual_seed(4)
    cotangents = torch.randn(len(case.outputs), case.count, generator=draw)
    exact = logits_of(heads, case.scaling, torch.float64)
    truth = define(exact, row_case(case), cotangents.double())
    rounded = logits_of(heads, case.scaling, torch.float32)
    plain = define(rounded, row_case(case), cotangents)
    found = found_by(heads, case, cotangents.to(DEVICE), how)
    assert truth.keys() == found.keys()
    for key in truth:
        limit = 2 * relative_error(plain[key].double(), truth[key]) + 6e-7
        assert relative_error(found[key].double().cpu(), truth[key]) <= limit, key


def test_every_order_of_the_programs_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    case = HeadCase(count=35, dim=16, ref_dim=16, vocab=150, ref_vocab=150)
    heads = build(case, torch.bfloat16)
    cotangents = torch.linspace(-1, 1, 70, device=DEVICE).view(2, 35)
    usual = found_by(heads, case, cotangents, SMALL)
    for size in (1, 2):  # of 3 blocks of tokens
        monkeypatch.setattr(launch, "group", lambda *_, size=size: size)
        found = found_by(heads, case, cotangents, SMALL)
        for key, values in usual.items():
            assert torch.equal(found[key], values), key


def test_a_target_outside_the_slice_is_minus_infinity_and_a_negative_one_nan() -> None:
    case = HeadCase(count=3)
    heads = build(case, torch.bfloat16)
    heads = replace(heads, targets=torch.tensor([140, 200, -1], device=DEVICE))
    found = []
    for first, part in slices(heads, (128, 192)):
        out = torch.empty(3, 3, device=DEVICE)
        block = block_of(part.policy, None, part.targets, PLAIN, first)
        small_head.normalisers(block, out, **SMALL)
        found.append(out[2])
    z = logits_of(heads, PLAIN, torch.float64).raw
    assert torch.equal(found[0][:2], torch.full((2,), -INF, device=DEVICE))
    assert float(found[1][0]) == pytest.approx(float(z[0, 140]), rel=1e-6)
    assert found[1][1] == -INF
    assert float(found[2][1]) == pytest.approx(float(z[1, 200]), rel=1e-6)
    assert all(values[2].isnan() for values in found)


def test_a_target_outside_the_slice_has_no_term_in_the_gradient() -> None:
    heads = build(HeadCase(count=3), torch.float32)
    heads = replace(heads, targets=torch.tensor([140, 200, -1], device=DEVICE))
    norms = torch.zeros(4, 3, device=DEVICE)
    norms[1] = 4.0
    for first, part in slices(heads, (128, 192)):
        dz = torch.empty(3, part.policy[1].shape[0], device=DEVICE)
        block = block_of(part.policy, None, part.targets, PLAIN, first)
        ones = torch.ones(1, 3, device=DEVICE)
        small_head.gradient(block, ("logp",), ones, norms, ones, dz, **SMALL)
        places = [(0, 140 - first), (1, 200 - first)]
        inside = [(i, v) for i, v in places if 0 <= v < dz.shape[1]]
        z = part.policy[0].double() @ part.policy[1].double().T
        expected = -torch.exp(z - 4.0)
        for place in inside:
            expected[place] += 1
        assert relative_error(dz.double(), expected) < 2e-6


def test_a_masked_target_has_its_gradient_and_masked_classes_none() -> None:
    case = HeadCase(count=2, masked=(40, 60))
    heads = build(case, torch.bfloat16)
    heads = replace(heads, targets=torch.tensor([50, 10], device=DEVICE))
    assert heads.reference[2] is not None
    heads.reference[2][40:60] = 0.0  # a class of the reference alone
    out = torch.empty(2, 3, 2, device=DEVICE)
    for each, head in zip(out, (heads.policy, heads.reference), strict=True):
        block = block_of(head, None, heads.targets, PLAIN, 0)
        small_head.normalisers(block, each, **SMALL)
    norms = out[:, :2].reshape(4, 2)
    assert out[0, 2, 0] == -INF
    dz = torch.empty(2, 301, device=DEVICE)
    kl = torch.empty(2, device=DEVICE)
    block = block_of(heads.policy, heads.reference, heads.targets, PLAIN, 0)
    ones = torch.ones(2, 2, device=DEVICE)
    small_head.gradient(block, ("logp", "kl"), ones, norms, ones, dz, kl, **SMALL)
    assert dz[0, 50] == 1.0
    assert dz[:, 40:60].sum() == 1.0
    assert torch.isfinite(dz).all()
    assert kl.isposinf().all()


def test_kl_is_infinite_where_only_the_reference_has_a_class() -> None:
    """Even where no block of the policy's classes has a column of it."""
    case = HeadCase(count=2, vocab=100, ref_vocab=301, near=None)
    heads = build(case, torch.bfloat16)
    found = found_by(heads, case, torch.ones(2, 2, device=DEVICE), SMALL)
    assert found["kl"].isposinf().all()
    assert torch.isfinite(found["dz"]).all()


def test_a_slice_of_the_reference_alone_adds_to_the_kl() -> None:
    heads = build(HeadCase(count=2), torch.bfloat16)
    hidden, weight, _ = heads.policy
    kl, dz = torch.empty(2, device=DEVICE), torch.empty(2, 0, device=DEVICE)
    block = block_of((hidden, weight[:0], None), heads.reference, heads.targets, PLAIN, 0)
    norms, ones = torch.full((4, 2), 3.0, device=DEVICE), torch.ones(2, 2, device=DEVICE)
    small_head.gradient(block, ("logp", "kl"), ones, norms, ones, dz, kl, **SMALL)
    assert kl.isposinf().all()


def test_nan_stays_in_its_own_row() -> None:
    case = HeadCase(count=3)
    heads = build(case, torch.bfloat16)
    heads.policy[0][1, 40] = torch.nan
    found = found_by(heads, case, torch.ones(2, 3, device=DEVICE), SMALL)
    for name, values in {"dz": found["dz"].T, "kl": found["kl"]}.items():
        assert values[:, 1].isnan().any(), name
        assert torch.isfinite(values[:, [0, 2]]).all(), name
    assert found["log_sums"][0].isnan().tolist() == [False, True, False]


def test_neither_tokens_nor_classes() -> None:
    heads = build(HeadCase(count=2), torch.bfloat16)
    hidden, weight, _ = heads.policy
    targets = torch.tensor([5, -1], device=DEVICE)
    out = torch.ones(4, 2, device=DEVICE)
    small_head.normalisers(block_of((hidden, weight[:0], None), None, targets, PLAIN, 64), out)
    assert torch.equal(out[:2], torch.full((2, 2), -INF, device=DEVICE))
    assert out[2, 0] == -INF
    assert out[2, 1].isnan()
    assert (out[3] == 0).all()
    none = (hidden[:0], weight, None)
    block = block_of(none, none, targets[:0], PLAIN, 0)
    small_head.normalisers(block, out[:, :0])
    dz, kl = torch.empty(0, 301, device=DEVICE), torch.empty(0, device=DEVICE)
    norms = torch.empty(4, 0, device=DEVICE)
    small_head.gradient(block, ("logp", "kl"), norms[:2], norms, norms[:2], dz, kl)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_padded_gradient_of_low_precision_is_the_exact_one_rounded(dtype: torch.dtype) -> None:
    case = HeadCase(scaling=LogitScaling(scale=0.5))
    heads = build(case, dtype)
    apart = torch.zeros(case.count, 2 * case.dim, dtype=dtype, device=DEVICE)[:, : case.dim]
    apart.copy_(heads.policy[0])  # rows of hidden states that are not next to each other
    heads = replace(heads, policy=(apart, *heads.policy[1:]))
    norms = torch.zeros(4, case.count, device=DEVICE)
    norms[1], norms[3] = 6.0, 6.1
    cotangents = torch.linspace(-1, 1, 2 * case.count, device=DEVICE).view(2, case.count)
    block = block_of(heads.policy, heads.reference, heads.targets, case.scaling, 0)
    given = block, ("logp", "kl"), cotangents, norms, cotangents
    exact = torch.full((case.count, 320), 7.0, device=DEVICE)
    store = new_store(exact, case.count, 301, dtype).fill_(7.0)
    kl, kl_again = torch.empty(2, case.count, device=DEVICE)
    small_head.gradient(*given, exact[:, :301], kl, **SMALL)
    rounded = padded_view(store, case.count, 301)
    small_head.gradient(*given, rounded, kl_again, **SMALL)
    assert (exact[:, 301:] == 7.0).all()  # not known to be padding
    truth = exact[:, :301]
    if dtype == torch.bfloat16 and interpreted():  # which cuts the digits off
        truth = (truth.contiguous().view(torch.int32) & -(1 << 16)).view(torch.float32)
    assert torch.equal(rounded, truth.to(dtype))
    assert torch.equal(kl, kl_again)


def test_a_tile_fits_every_gpu_and_only_low_precision_is_worthwhile() -> None:
    for heads in (1, 2):
        for shared in (48 << 10, 64 << 10, 99 << 10, 163 << 10, 227 << 10):
            tile = launch.tile(heads, 2, shared)
            assert tile.stages * (tile.tokens + tile.classes) * tile.depth * 2 <= shared
    heads_of = build(HeadCase(count=1), torch.bfloat16)
    on_gpu = small_head.worthwhile(*heads_of.policy[:2], ("logp",), PLAIN)
    assert on_gpu == (DEVICE == "cuda")
    capped = LogitScaling(softcap=5.0)
    assert not small_head.worthwhile(*heads_of.policy[:2], ("logp",), capped)


LINE = (
    "{kernel:11} {variant:20} {dtype} D {dim:4} {target:7} {tile} "
    "{registers:4} registers {shared:6} of {limit:6} B shared {spilled:3} spilled"
)


@pytest.mark.slow
def test_every_kernel_compiles_without_a_spill_and_fits() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    command = [sys.executable, "-m", "tests.kernels.compile_small_head"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    for row in rows:
        print(LINE.format(**row))
    assert {row["target"] for row in rows} == {"sm_80", "sm_90", "sm_100", "gfx942"}
    assert all(row["shared"] <= row["limit"] for row in rows)
    assert all(row["spilled"] == 0 for row in rows)


@pytest.mark.parametrize("outputs", [("logp",), ("logp", "ref_logp"), ("logp", "ref_logp", "kl")])
@pytest.mark.parametrize("passes", ["one_pass", "keep_dz", "frozen"])
def test_passes_of_small_heads_agree_with_those_that_store_logits(
    passes: str, outputs: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`pair_scores` with and without logits, several chunks, masked tokens, an odd vocabulary."""
    dtype = torch.bfloat16
    from prefkit_kernels import pair_scores
    from prefkit_kernels.pair_scores import keep_dz, one_pass
    from tests.kernels.kernel_cases import Case, build

    for module in (chunks, keep_dz, one_pass):
        monkeypatch.setattr(module, "gradient_dtype", lambda hidden: hidden.dtype)
    found, taken = [], []
    inner = small_head.gradient
    monkeypatch.setattr(small_head, "gradient", lambda *a, **k: (taken.append(1), inner(*a, **k)))
    for small in (True, False):
        monkeypatch.setattr(small_head, "worthwhile", lambda *_, small=small: small)
        case = Case(outputs=outputs, near=0.05, frozen_head=passes == "frozen", bias=False)
        x = build(case, dtype, DEVICE)
        coefficients = {k: v.float() for k, v in x.cotangents.items()}
        scores = pair_scores(
            *(x.hidden, x.weight, x.targets, torch.zeros_like(x.targets), 1, coefficients),
            ref_hidden=x.ref_hidden,
            ref_weight=x.ref_weight,
            outputs=outputs,
            backend="triton",
            memory_budget=301 * 4 * 12,
            passes="auto" if passes == "frozen" else passes,
        )
        scores.scores.sum().backward()
        grads = [x.hidden.grad] + ([] if passes == "frozen" else [x.weight.grad])
        values = [scores.scores, *(getattr(scores.stats, name) for name in outputs)]
        found.append([y.detach().double() for y in (*values, *grads)])
    assert taken
    for ours, stored in zip(*found, strict=True):
        bound = 2e-5 if ours.shape in ((1,), (13,)) else 4 * torch.finfo(dtype).eps
        assert float((ours - stored).norm() / stored.norm()) < bound
