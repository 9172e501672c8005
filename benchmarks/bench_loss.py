"""How long does one preference loss take, forward + backward, beside the peers?

    python -m pytest benchmarks/bench_loss.py          (or `make bench`)

One pair of 1024 + 1024 tokens, D 1024, V 32000, fp32, trainable head, from ready hidden states. A
round starts with no gradients, so that every way pays for its dW. `bare GEMMs` runs the matrix
products of the two-pass schedule and nothing else: the limit on this machine.
"""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from prefkit import DPO, TDPO, fused_preference_loss

TOKENS, DIM, VOCAB = 2048, 1024, 32_000
ROUNDS = 5


class Inputs:
    """One pair: tokens 0..1023 chosen, the rest rejected, and a nearby reference."""

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(0)
        self.hidden = torch.randn(TOKENS, DIM, generator=draw).requires_grad_()
        self.weight = (torch.randn(VOCAB, DIM, generator=draw) * 0.05).requires_grad_()
        self.ref_hidden = self.hidden.detach() + 0.01 * torch.randn(TOKENS, DIM, generator=draw)
        self.ref_weight = self.weight.detach().clone()
        self.targets = torch.randint(0, VOCAB, (TOKENS,), generator=draw)
        self.segments = torch.arange(TOKENS) // (TOKENS // 2)

    def clear(self) -> None:
        self.hidden.grad = self.weight.grad = None


def prefkit_loss(x: Inputs, kl: bool) -> Tensor:
    objective = TDPO() if kl else DPO()
    return fused_preference_loss(
        x.hidden,
        x.weight,
        x.targets,
        x.segments,
        objective,
        ref_hidden=x.ref_hidden,
        ref_weight=x.ref_weight,
    ).loss


def materialised(x: Inputs, kl: bool) -> Tensor:
    logp = (x.hidden @ x.weight.T).log_softmax(-1)
    with torch.no_grad():
        ref = (x.ref_hidden @ x.ref_weight.T).log_softmax(-1)
    ratio = (logp - ref).gather(1, x.targets[:, None]).squeeze(1)
    kls = (ref.exp() * (ref - logp)).sum(-1) if kl else None
    return _link(ratio, kls)


def trl_functions(x: Inputs, kl: bool) -> Tensor:
    """What TRL ≥ 1.15 has: one function for log-probs, and for a KL a second one on top."""
    name = "trl.kernels.chunked_logprob"
    logprob = pytest.importorskip(name, reason="needs TRL ≥ 1.15").ChunkedLogProbFunction
    with torch.no_grad():
        ref = logprob.apply(x.ref_hidden, x.ref_weight, None, x.targets, 1.0, VOCAB)[0]
    logp = logprob.apply(x.hidden, x.weight, None, x.targets, 1.0, VOCAB)[0]
    if not kl:
        return _link(logp - ref, None)
    name = "trl.kernels.chunked_divergence"
    divergence = pytest.importorskip(name, reason="needs TRL ≥ 1.15").ChunkedDivergenceFunction
    kls = divergence.apply(x.hidden, x.weight, None, x.ref_hidden, x.ref_weight, None, 0.0)[0]
    return _link(logp - ref, kls)


def bare_gemms(x: Inputs, kl: bool) -> Tensor:
    """2 + 2 products forward, recompute (policy, and the reference for a KL), dH and dW."""
    h, w = x.hidden.detach(), x.weight.detach()
    step = 4096
    total = h.new_zeros(())
    for start in range(0, VOCAB, step):
        piece = w[start : start + step]
        for _ in range(4 if kl else 3):
            z = h @ piece.T
        total += (z @ piece).sum() + (z.T @ h).sum()
    return total.requires_grad_()


def _link(ratio: Tensor, kls: Tensor | None) -> Tensor:
    half = TOKENS // 2
    u = 0.1 * (ratio[:half].sum() - ratio[half:].sum())
    if kls is not None:
        u = u - 0.05 * (kls[half:].sum() - kls[:half].sum().detach())
    return -F.logsigmoid(u)


WAYS: dict[str, Callable[[Inputs, bool], Tensor]] = {
    "prefkit": prefkit_loss,
    "materialised": materialised,
    "TRL": trl_functions,
    "bare GEMMs": bare_gemms,
}


@pytest.mark.parametrize("loss", ["dpo", "tdpo2"])
@pytest.mark.parametrize("way", WAYS)
def test_the_ways_agree(way: str, loss: str) -> None:
    """They are only comparable if they compute the same thing: gradients to four digits."""
    if way == "bare GEMMs":
        pytest.skip("computes no loss")
    found, expected = Inputs(), Inputs()
    WAYS[way](found, loss == "tdpo2").backward()
    materialised(expected, loss == "tdpo2").backward()
    for a, b in ((found.hidden, expected.hidden), (found.weight, expected.weight)):
        assert float((a.grad - b.grad).norm() / b.grad.norm()) < 1e-3


@pytest.mark.parametrize("loss", ["dpo", "tdpo2"])
@pytest.mark.parametrize("way", WAYS)
def test_loss(benchmark: Callable, way: str, loss: str) -> None:
    x = Inputs()

    def step() -> None:
        WAYS[way](x, loss == "tdpo2").backward()

    benchmark.group = loss
    benchmark.pedantic(step, setup=x.clear, rounds=ROUNDS, warmup_rounds=1, iterations=1)
