"""Blocks of logits and what the kernels must make of them, by definition and autograd.

`define` is independent of the kernels: softmaxes of whole rows, plain formulas, autograd for the
gradient. In fp64 it is the truth; in fp32 it is the plain computation whose error is the yardstick.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from prefkit_kernels.core.buffers import new_store, padded_view
from prefkit_kernels.core.logits import LogitsBlock, LogitScaling

OUTPUTS = ("logp", "kl", "reverse_kl", "entropy", "log_sum_sq")
SUMS = OUTPUTS[1:]
HEADS = ("raw", "ref", "bias", "ref_bias")
INF = torch.inf
PLAIN = LogitScaling()


@dataclass(frozen=True, kw_only=True)
class RowCase:
    """Whole rows of two heads; `near` puts the reference's logits that close to the policy's."""

    count: int = 3
    vocab: int = 301
    ref_vocab: int = 301
    near: float | None = 0.1
    offset: float = 0.0
    bias: bool = False
    masked: tuple[int, int] | None = None  # classes that both biases mask
    scaling: LogitScaling = PLAIN
    outputs: tuple[str, ...] = OUTPUTS
    cuts: tuple[int, ...] = ()  # where slices of the vocabulary meet


def build(case: RowCase) -> LogitsBlock:
    """fp64 rows, whose numbers an fp32 can hold."""
    draw = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    z, zr = 3 * normal(case.count, case.vocab), 3 * normal(case.count, case.ref_vocab)
    shared = min(case.vocab, case.ref_vocab)
    if case.near is not None:
        zr[:, :shared] = z[:, :shared] + case.near * zr[:, :shared]
    z, zr = z + case.offset, zr + case.offset
    biases = [normal(case.vocab), normal(case.ref_vocab)] if case.bias else [None, None]
    if case.masked is not None:
        biases = [torch.zeros(case.vocab), torch.zeros(case.ref_vocab)]
        for bias in biases:
            bias[slice(*case.masked)] = -INF
    targets = torch.randint(0, shared, (case.count,), generator=draw)
    targets[-1] = shared - 1
    if case.count > 2:
        targets[:2] = torch.tensor([0, min(64, shared - 1)])  # the first class, the edge of a block
    bias, ref_bias = (None if bias is None else bias.double() for bias in biases)
    return LogitsBlock(z.double(), zr.double(), bias, ref_bias, targets, case.scaling)


def slices(
    block: LogitsBlock, cuts: Sequence[int], padding: float | None = None
) -> list[LogitsBlock]:
    """The rows cut at these classes; contiguous, or in padded buffers that hold `padding`."""
    assert block.ref is not None
    ends = [*cuts, max(block.raw.shape[1], block.ref.shape[1])]

    def cut(x: Tensor | None, start: int, stop: int) -> Tensor | None:
        if x is None:
            return None
        part = x[..., start:stop].contiguous()
        return part if x.dim() == 1 or padding is None else in_buffer(part, padding)

    return [
        replace(
            block,
            **{name: cut(getattr(block, name), start, stop) for name in HEADS},
            first_class=start,
        )
        for start, stop in zip([0, *cuts], ends, strict=True)
    ]


def in_buffer(values: Tensor, padding: float) -> Tensor:
    """(C, S) as the logits' buffers hold it: rows padded, here with a known number."""
    count, width = values.shape
    store = new_store(values, count, width, values.dtype).fill_(padding)
    return padded_view(store, count, width).copy_(values)


def cast(block: LogitsBlock, dtype: torch.dtype, device: str = "cpu") -> LogitsBlock:
    def to(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.to(dtype).to(device)

    changed: dict[str, Any] = {name: to(getattr(block, name)) for name in HEADS}
    return replace(block, **changed, targets=block.targets.to(device))


def define(block: LogitsBlock, case: RowCase, cotangents: Tensor) -> dict[str, Tensor]:
    """Normalisers, sums over classes by slice, and the gradient by raw, in the rows' precision."""
    assert block.ref is not None
    raw = block.raw.clone().requires_grad_()
    width = max(raw.shape[1], block.ref.shape[1])
    z = _logits(raw, block.bias, block.scaling, width)
    zr = _logits(block.ref, block.ref_bias, block.scaling, width)
    lp, lr = z.log_softmax(1), zr.log_softmax(1)
    p, q = lp.exp(), lr.exp()
    # A class masked in both is 0 in every sum.
    lp, lr = (x.masked_fill(x == -INF, 0) for x in (lp, lr))
    terms = {
        "kl": q * (lr - lp) + (p - q),
        "reverse_kl": p * (lp - lr) + (q - p),
        "entropy": -p * lp,
        "log_sum_sq": p * p,
    }
    stats = {name: terms[name].sum(1) for name in case.outputs if name != "logp"}
    if "log_sum_sq" in stats:
        stats["log_sum_sq"] = stats["log_sum_sq"].log()
    if "logp" in case.outputs:
        stats["logp"] = lp.gather(1, block.targets[:, None])[:, 0]
    loss = sum((stats[name] * c).sum() for name, c in zip(case.outputs, cotangents, strict=True))
    assert isinstance(loss, Tensor)
    loss.backward()
    assert raw.grad is not None
    ends = list(zip([0, *case.cuts], [*case.cuts, width], strict=True))
    found = {
        name: torch.stack([terms[name][:, a:b].sum(1) for a, b in ends])
        for name in case.outputs
        if name != "logp"
    }
    tops = torch.stack([z.amax(1), zr.amax(1)])
    log_sums = torch.stack([(x - x.amax(1, keepdim=True)).logsumexp(1) for x in (z, zr)])
    target = z.gather(1, block.targets[:, None])[:, 0]
    own = z[:, : raw.shape[1]]
    sums = torch.stack([own[:, a:b].sum(1) for a, b in ends])
    found |= {"tops": tops, "log_sums": log_sums, "target": target, "dz": raw.grad}
    found["z_sum"] = without_infinity(sums)
    return {name: x.detach() for name, x in found.items()}


def without_infinity(sums: Tensor) -> Tensor:
    """−1e4 for −inf, the sum of masked classes, from which no error can be told."""
    return torch.where(sums.isneginf(), -1e4, sums)


def _logits(raw: Tensor, bias: Tensor | None, scaling: LogitScaling, width: int) -> Tensor:
    z = (raw if bias is None else raw + bias) * scaling.scale
    if scaling.softcap:
        z = scaling.softcap * torch.tanh(z / scaling.softcap)
        if bias is not None:
            z = z.masked_fill(bias == -INF, -INF)
    z = z / scaling.temperature
    return torch.nn.functional.pad(z, (0, width - z.shape[1]), value=-INF)


def found_by(
    module: Any,
    block: LogitsBlock,
    case: RowCase,
    cotangents: Tensor,
    how: dict[str, Any] | None = None,
    padding: float | None = None,
) -> dict[str, Tensor]:
    """The same from a backend: every function on every slice, slices put together in fp64."""
    how = how or {}
    parts = slices(block, case.cuts, padding)
    like = block.raw
    norms, target, z_sum = like.new_empty(4, case.count), None, None
    for k, ref in enumerate((False, True)):
        each = like.new_full((len(parts), 4, case.count), torch.nan)
        for out, part in zip(each, parts, strict=True):
            head = replace(part, raw=part.ref, bias=part.ref_bias) if ref else part
            if head.raw.shape[1]:
                module.normalisers(replace(head, ref=None, ref_bias=None), out, **how)
            else:
                out[:3], out[3] = -INF, 0
        top = each[:, 0].amax(0)
        total = (each[:, 1] + torch.where(each[:, 0] == -INF, -INF, each[:, 0] - top)).exp()
        norms[2 * k], norms[2 * k + 1] = top, total.sum(0).log()
        target = each[:, 2].amax(0) if target is None else target
        z_sum = each[:, 3] if z_sum is None else z_sum
    names = tuple(name for name in case.outputs if name in SUMS)
    sums = like.new_full((len(parts), len(names), case.count), torch.nan)
    for out, part in zip(sums, parts, strict=True):
        module.class_sums(part, names, norms, out, **how)
    stats = like.new_full((len(case.outputs), case.count), torch.nan)  # logp and kl: never read
    for name, total in zip(names, sums.sum(0), strict=True):
        if name != "kl":
            stats[case.outputs.index(name)] = total.log() if name == "log_sum_sq" else total
    dz, kl_sums = [], like.new_full((len(parts), case.count), torch.nan)
    for out, part in zip(kl_sums, parts, strict=True):
        empty = torch.full_like(part.raw, torch.nan)
        dz.append(empty if padding is None else in_buffer(empty, padding))
        kl_sum = out if "kl" in names else None
        module.gradient(part, case.outputs, stats, norms, cotangents, dz[-1], kl_sum, **how)
    found = dict(zip(names, sums.unbind(1), strict=True))
    assert target is not None
    assert z_sum is not None
    found |= {"tops": norms[::2], "log_sums": norms[1::2], "target": target, "dz": torch.cat(dz, 1)}
    found["z_sum"] = without_infinity(z_sum)
    if "kl" in names:
        found["kl in one read"] = kl_sums
    return found
