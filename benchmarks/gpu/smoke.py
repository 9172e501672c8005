"""Every path of the kernels against fp64, and what only a GPU can show.

The truth is the definition in fp64 (`backend="reference"`, or `benchmarks.truth` at a whole head)
from the same rounded inputs. Limits: statistics come from fp32 logits, so 1e-4 whatever the inputs
are; gradients are rounded twice in their own dtype (by the logits, and as the result), half an eps
each, and twice that is allowed.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu import smoke_gpu
from benchmarks.gpu.telling import Checks, device
from benchmarks.problems import Case, build
from benchmarks.truth import Found, errors, truth
from benchmarks.ways import WAYS
from prefkit_kernels import contrastive_scores, pair_scores, token_stats

ALL = ("logp", "ref_logp", "kl", "reverse_kl", "entropy", "log_sum_sq")
# Head frozen?, pairs, passes of `pair_scores`.
_PAIRS = (
    *((False, 1, "one_pass"), (False, 1, "keep_dz"), (False, 3, "keep_dz")),
    *((True, 1, "one_pass"), (True, 3, "one_pass")),
)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
Check = Callable[[], dict[str, Any]]


def limits(dtype: torch.dtype) -> dict[str, float]:
    """The largest error allowed, by kind of quantity."""
    return {"statistic": 1e-4, "gradient": max(2 * torch.finfo(dtype).eps, 1e-4)}


def off(found: Tensor, true: Tensor) -> float:
    """‖found − true‖ / ‖true‖."""
    return float((found.double() - true).norm() / true.norm().clamp_min(1e-300))


def judged(wrong: dict[str, float], dtype: torch.dtype) -> dict[str, Any]:
    """Whether every error is within its limit; NaN is not."""
    most = limits(dtype)
    kinds = {name: "gradient" if name.startswith("d_") else "statistic" for name in wrong}
    ok = all(error <= most[kinds[name]] for name, error in wrong.items())
    return {"ok": ok, **{name: float(f"{error:.2e}") for name, error in wrong.items()}}


class Heads:
    """Hidden states, heads and targets of policy and reference, nearby as early in training."""

    def __init__(
        self, tokens: int, dim: int, vocab: int, dtype: torch.dtype, where: str, mask: int = 0
    ) -> None:
        draw = torch.Generator(where).manual_seed(tokens + vocab)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=draw, device=where)

        hidden, weight = normal(tokens, dim), normal(vocab, dim) * (3 / math.sqrt(dim))
        near = hidden + 0.1 * normal(tokens, dim), weight + 0.01 * normal(vocab, dim)
        self.hidden, self.weight = hidden.to(dtype), weight.to(dtype)
        self.ref_hidden, self.ref_weight = (x.to(dtype) for x in near)
        self.targets = torch.randint(0, vocab, (tokens,), generator=draw, device=where)
        if mask:
            self.targets[::mask] = -100
        self.draw = draw

    @property
    def scored(self) -> Tensor:
        return self.targets != -100

    def policy(self, dtype: torch.dtype, frozen: bool) -> tuple[Tensor, Tensor]:
        """Copies of hidden states and head in another dtype, to be differentiated."""
        hidden = self.hidden.to(dtype, copy=True).requires_grad_()
        return hidden, self.weight.to(dtype, copy=True).requires_grad_(not frozen)

    def reference(self, dtype: torch.dtype) -> dict[str, Any]:
        return {"ref_hidden": self.ref_hidden.to(dtype), "ref_weight": self.ref_weight.to(dtype)}


def gradients(hidden: Tensor, weight: Tensor) -> dict[str, Tensor]:
    found = {"d_hidden": hidden.grad, "d_weight": weight.grad}
    return {name: grad for name, grad in found.items() if grad is not None}


def stats_case(
    heads: Heads, dtype: torch.dtype, frozen: bool, passes: str, budget: int
) -> dict[str, Any]:
    """`token_stats` with every output: values, and gradients of one number of all of them."""

    def run(kind: torch.dtype, **how: Any) -> dict[str, Tensor]:
        hidden, weight = heads.policy(kind, frozen)
        stats = token_stats(
            hidden, weight, heads.targets, outputs=ALL, **heads.reference(kind), **how
        )
        parts = [(k + 1) * getattr(stats, name).double().sum() for k, name in enumerate(ALL)]
        sum(part for part, name in zip(parts, ALL, strict=True) if name != "ref_logp").backward()
        values = {name: getattr(stats, name).detach() for name in ALL}
        return values | gradients(hidden, weight)

    found = run(dtype, backend="triton", passes=passes, memory_budget=budget)
    true = run(torch.float64, backend="reference")
    return judged({name: off(found[name], true[name]) for name in true}, dtype)


def pairs_case(
    heads: Heads,
    dtype: torch.dtype,
    outputs: tuple[str, ...],
    frozen: bool,
    pairs: int,
    told: bool,
    budget: int,
    passes: str,
) -> dict[str, Any]:
    """`pair_scores`: scores, statistics and gradients of a weighted sum of the scores."""
    where = heads.hidden.device
    count, scored = len(heads.targets), heads.scored
    pair = torch.arange(count, device=where) % pairs
    weights = torch.linspace(0.5, 1.5, pairs, device=where)
    used = [name for name in outputs if name != "ref_logp"]
    factors = {n: torch.randn(count, generator=heads.draw, device=where) for n in used}

    hidden, weight = heads.policy(torch.float64, frozen)
    args: dict[str, Any] = {"outputs": outputs, **heads.reference(torch.float64)}
    stats = token_stats(hidden, weight, heads.targets, backend="reference", **args)
    value = sum(getattr(stats, name) * factors[name].double() for name in used)
    scores = torch.stack([value[(pair == i) & scored].sum() for i in range(pairs)])
    (scores * weights).sum().backward()
    true = {"scores": scores, **{name: getattr(stats, name) for name in outputs}}
    true |= gradients(hidden, weight)

    hidden, weight = heads.policy(dtype, frozen)
    args = {"outputs": outputs, **heads.reference(dtype), "memory_budget": budget}
    args |= {"num_scored": int(scored.sum())} if told else {}
    options = {**args, "passes": passes, "backend": "triton"}
    result = pair_scores(hidden, weight, heads.targets, pair, pairs, factors, **options)
    (result.scores * weights).sum().backward()
    found = {"scores": result.scores, **{name: getattr(result.stats, name) for name in outputs}}
    found |= gradients(hidden, weight)
    return judged({name: off(found[name].detach(), x.detach()) for name, x in true.items()}, dtype)


def contrast_case(heads: Heads, dtype: torch.dtype, budget: int) -> dict[str, Any]:
    """`contrastive_scores` by its formula, softmax((1 + b)·z − b·z')[y]."""
    models = (heads.hidden, heads.weight, heads.ref_hidden, heads.ref_weight)
    found = contrastive_scores(*models, heads.targets, beta=0.7, memory_budget=budget)
    a, w, b, u = (x.double() for x in models)
    z = (1.7 * (a @ w.T) - 0.7 * (b @ u.T)).softmax(-1)
    true = z.gather(1, heads.targets.clamp_min(0)[:, None]).squeeze(1) * heads.scored
    return judged({"scores": off(found, true)}, dtype)


def whole_head(case: Case, where: str) -> dict[str, Any]:
    """A whole loss with the default chunks, in the passes it chooses and in two, against fp64
    from the formulas."""
    # Largest over largest here, and a KL of 5e-3 a token is a small part of its terms.
    most = {"loss": 1e-4, "logp": 1e-4, "kl": 1e-3, "d_hidden": 2e-2, "d_weight": 2e-2}
    problem = build(case, where)
    expected = truth(problem)
    told: dict[str, Any] = {"ok": True}
    for way in ("prefkit", "two_pass"):
        problem.clear()
        outcome = WAYS[way].ready(problem)()
        assert outcome is not None, "a loss gives an outcome"
        grads = problem.hidden.grad, problem.weight.grad
        found = Found(outcome.loss, outcome.logp, outcome.kl, *grads)
        wrong = errors(found, expected, problem.scored)
        told["ok"] &= all(error <= most[name] for name, error in wrong.items())
        told |= {f"{way} {name}": float(f"{error:.2e}") for name, error in wrong.items()}
    return told


def checks(where: str) -> Iterator[tuple[str, Check]]:
    """Names and checks that run anywhere, in an order that compiles no kernel twice."""
    small = where == "cpu"
    tokens = 11 if small else 1501
    shapes = ((64, 16), (67, 16)) if small else ((4096, 256), (5003, 256), (5003, 1280))
    rows = 3 if small else 300  # of a chunk: several chunks, so that dz comes in groups
    counts: tuple[tuple[int, bool], ...] = (
        (0, True),
        (1, True),
        (1, False),
    )  # masked?, told how many are scored?
    for dtype, (vocab, dim) in product(DTYPES[:1] if small else DTYPES, shapes):
        if small:  # an interpreter is slow: one way of counting for each shape
            counts = ((1, vocab % 2 == 0),)
        name = f"{str(dtype).removeprefix('torch.')}, V {vocab}, D {dim}"
        heads = [Heads(tokens, dim, vocab, dtype, where, mask) for mask in (0, 5)]
        budget = rows * vocab * 14
        for frozen, passes in ((False, "two_pass"), (True, "two_pass"), (True, "one_pass")):
            head = "frozen" if frozen else "trainable"
            yield (
                f"token_stats, {name}, {head}, {passes}",
                partial(stats_case, heads[1], dtype, frozen, passes, budget),
            )
        for outputs, (frozen, pairs, passes), (mask, told) in product(
            (("logp", "ref_logp"), ("logp", "ref_logp", "kl")), _PAIRS, counts
        ):
            words = f"{'frozen' if frozen else 'trainable'}, {pairs} of pairs, {passes}"
            words += f", {'masked' if mask else 'all'}, {'told' if told else 'counted'}"
            case = (heads[mask], dtype, outputs, frozen, pairs, told, budget, passes)
            yield (
                f"pair_scores, {name}, {'+'.join(outputs[::2])}, {words}",
                partial(pairs_case, *case),
            )
        yield f"contrastive_scores, {name}", partial(contrast_case, heads[1], dtype, budget)
    for loss, vocab in product(("dpo", "tdpo2"), (67, 64) if small else (128_256, 128_257)):
        shape = {"tokens": 16, "dim": 16} if small else {"tokens": 4096, "dim": 4096}
        whole = Case(loss=loss, vocab=vocab, dtype="bfloat16", **shape)  # type: ignore[arg-type]
        yield whole.title, partial(whole_head, whole, where)


def main() -> None:
    where = device()
    run = Checks(where)
    for name, check in checks(where):
        run(name, check)
    for name, check in smoke_gpu.everywhere(where):
        run(name, check)
    for name, check in smoke_gpu.gpu_alone(where):
        run(name, check, gpu_only=True)
    run.exit()


if __name__ == "__main__":
    main()
