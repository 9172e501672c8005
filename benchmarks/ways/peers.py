"""Other projects' fused heads, each called as its own documentation or trainer calls it.

None of them is needed: one that is not installed, or has no such loss, raises `Unavailable` with
the reason.
"""

import importlib
from functools import partial
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.problems import Problem
from benchmarks.truth import BETA
from benchmarks.ways.base import Outcome, Unavailable, Way, finish, reference_logp

# The width of a vocabulary tile in TRL's trainer.
_TRL_TILE = 32_768


def _trl(problem: Problem) -> Outcome:
    """TRL ≥ 1.15: one function for log-probs, and for a KL a second one on top.

    Like its trainer: only scored tokens on a GPU, all of them elsewhere; of the optional outputs
    none, which the loss does not need.
    """
    logprob = _module("trl.kernels.chunked_logprob", "TRL ≥ 1.15").ChunkedLogProbFunction
    hidden, ref_hidden, targets = problem.hidden, problem.ref_hidden, problem.targets
    keep = None
    if problem.hidden.is_cuda and problem.case.masked:
        keep = problem.scored.nonzero().squeeze(1)
        hidden, ref_hidden, targets = hidden[keep], ref_hidden[keep], targets[keep]
    width = min(_TRL_TILE, problem.case.vocab)

    def logp(rows: Tensor, weight: Tensor) -> Tensor:
        return logprob.apply(rows, weight, None, targets, 1.0, width, None, 1.0, ())[0]

    def spread(values: Tensor) -> Tensor:
        if keep is None:
            return values
        return values.new_zeros(problem.case.tokens).index_copy(0, keep, values)

    ref = reference_logp(problem, lambda: spread(logp(ref_hidden, problem.ref_weight)))
    policy = spread(logp(hidden, problem.weight))
    if problem.case.loss == "dpo":
        return finish(problem, policy, ref, None)
    divergence = _module("trl.kernels.chunked_divergence", "TRL ≥ 1.15").ChunkedDivergenceFunction
    kl, _ = divergence.apply(
        hidden, problem.weight, None, ref_hidden, problem.ref_weight, None, 0.0
    )
    return finish(problem, policy, ref, spread(kl))


def _liger(problem: Problem) -> Outcome:
    """Liger ≥ 0.8 chunked DPO: rows of whole sequences, chosen first; sums, one pair a chunk."""
    case = problem.case
    _only_dpo(problem, "Liger")
    if problem.ref_logp is not None:
        raise Unavailable("Liger's DPO takes the reference as hidden states only")
    name = "liger_kernel.chunked_loss.dpo_loss"
    loss = _module(name, "liger-kernel ≥ 0.8").LigerFusedLinearDPOLoss(beta=BETA)
    rows = (2 * case.pairs, case.length)
    value, _ = loss(
        problem.weight,
        problem.hidden.view(*rows, case.dim),
        problem.labels.view(rows),
        ref_input=problem.ref_hidden.view(*rows, case.dim),
        ref_weight=problem.ref_weight,
    )
    return Outcome(value)


def _cce(problem: Problem, **options: Any) -> Outcome:
    """cut-cross-entropy: DPO from per-token losses; its kernels on a GPU, its torch path else."""
    _only_dpo(problem, "cut-cross-entropy")
    cross_entropy = _module("cut_cross_entropy", "cut-cross-entropy").linear_cross_entropy
    if not problem.hidden.is_cuda:
        if options:
            raise Unavailable("a setting of its GPU kernels; the machine has no GPU")
        options = {"impl": "torch_compile"}

    def logp(hidden: Tensor, weight: Tensor) -> Tensor:
        return -cross_entropy(hidden, weight, problem.labels, reduction="none", **options).float()

    ref = reference_logp(problem, lambda: logp(problem.ref_hidden, problem.ref_weight))
    return finish(problem, logp(problem.hidden, problem.weight), ref, None)


def _quack(problem: Problem) -> Outcome:
    """QuACK's chunked linear cross-entropy, which gives sums: one call for each side of the pair.

    Each call holds an fp32 gradient of the head until the backward, so it is asked of one pair.
    """
    case = problem.case
    _only_dpo(problem, "QuACK")
    name = "quack.linear_cross_entropy"
    if case.pairs > 1:
        raise Unavailable("QuACK gives sums: a call and an fp32 dW for every side of every pair")
    if not problem.hidden.is_cuda:
        raise Unavailable("QuACK's kernels need a GPU of the Hopper generation or later")
    cross_entropy = _module(name, "quack-kernels").chunked_linear_cross_entropy
    sides = (slice(0, case.length), slice(case.length, 2 * case.length))

    def score(hidden: Tensor, weight: Tensor, side: slice) -> Tensor:
        return -cross_entropy(hidden[side], weight, problem.labels[side], reduction="sum").float()

    def reference(side: slice) -> Tensor:
        if problem.ref_logp is not None:
            return problem.ref_logp[side][problem.scored[side]].sum()
        with torch.no_grad():
            return score(problem.ref_hidden, problem.ref_weight, side)

    chosen, rejected = (
        score(problem.hidden, problem.weight, side) - reference(side) for side in sides
    )
    return Outcome(-F.logsigmoid(BETA * (chosen - rejected)))


def _torch_chunked(problem: Problem) -> Outcome:
    """torch ≥ 2.13 `F.linear_cross_entropy` with its chunked options."""
    _only_dpo(problem, "F.linear_cross_entropy")
    if not hasattr(F, "linear_cross_entropy"):
        raise Unavailable(f"torch {torch.__version__} has no F.linear_cross_entropy (2.13 has)")
    options = torch.nn.LinearCrossEntropyOptions()

    def logp(hidden: Tensor, weight: Tensor) -> Tensor:
        labels = problem.labels
        nll = F.linear_cross_entropy(hidden, weight, labels, reduction="none", options=options)
        return -nll.float()

    ref = reference_logp(problem, lambda: logp(problem.ref_hidden, problem.ref_weight))
    return finish(problem, logp(problem.hidden, problem.weight), ref, None)


def _only_dpo(problem: Problem, name: str) -> None:
    if problem.case.loss != "dpo":
        raise Unavailable(f"{name} has no KL to a reference")


def _module(name: str, package: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Unavailable(f"needs {package}, which cannot be imported here: {error}") from error


PEERS = (
    Way("trl", "TRL ChunkedLogProb (+ ChunkedDivergence)", _trl),
    Way("liger", "Liger chunked DPO", _liger, compiled=True),
    Way("cce", "cut-cross-entropy", _cce, compiled=True),
    Way("cce_exact", "cut-cross-entropy, no gradient filter", partial(_cce, filter_eps=None)),
    Way("quack", "QuACK chunked linear cross-entropy", _quack, compiled=True),
    Way("torch_chunked", "F.linear_cross_entropy, chunked", _torch_chunked),
)
