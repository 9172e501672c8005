"""What each process of tests/kernels/test_vocab_parallel.py runs."""

import json
import os
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"  # tensors are on a CPU here, also beside a GPU

import torch
import torch.distributed as dist
from torch import Tensor

from prefkit import DPO, TDPO, fused_preference_loss
from prefkit.train.checkpointing.leaving import leave_group
from prefkit_kernels import VocabShard, token_stats
from tests.gloo import join
from tests.kernels.kernel_cases import ALL, Case, build, relative_error
from tests.loss.test_objectives import sample

# V 301 is odd, so the slices differ; with a single class the second process has none.
CASES = {
    "every output": Case(),
    "even": Case(vocab=300, ref_vocab=300),
    "frozen, one pass": Case(frozen_head=True, outputs=("logp", "ref_logp", "kl")),
    "no bias, near": Case(bias=False, near=0.05),
    "softcap": Case(options={"softcap": 5.0, "logit_scale": 0.7, "temperature": 1.3}),
    "tiny budget": Case(options={"memory_budget": 4000}),
    # 151 and 150 rows: one row of logits fits here, two there; chunks must be those of the widest.
    "chunks": Case(outputs=("logp",), options={"memory_budget": 2405}),
    "one class": Case(vocab=1, ref_vocab=1, outputs=("logp", "kl")),
}
OBJECTIVES = {"dpo": DPO(beta=0.3), "tdpo2": TDPO(beta=0.3), "nll": DPO(nll_weight=0.3)}


def slice_of(shard: VocabShard, tensor: Tensor | None) -> Tensor | None:
    """This process's rows, as a leaf of its own."""
    if tensor is None:
        return None
    return tensor.detach()[shard.start : shard.stop].clone().requires_grad_(tensor.requires_grad)


def stats_errors(case: Case, backend: str, dtype: torch.dtype) -> dict[str, float]:
    """Relative differences to one process with the whole vocabulary, gradients included."""
    whole, part = build(case, dtype), build(case, dtype)
    shard = VocabShard(dist.group.WORLD, vocab_size=case.vocab)
    for name in ("weight", "bias", "ref_weight", "ref_bias"):
        setattr(part, name, slice_of(shard, getattr(part, name)))
    stats = []
    for problem, options in ((whole, {}), (part, {"vocab_shard": shard})):
        found = token_stats(
            *(problem.hidden, problem.weight, problem.targets, problem.bias),
            *(problem.ref_hidden, problem.ref_weight, problem.ref_bias),
            outputs=case.outputs,
            backend=backend,
            **{**case.options, **options},
        )
        sum(
            (getattr(found, k).double() * c).sum() for k, c in problem.cotangents.items()
        ).backward()
        stats.append(found)
    errors = {
        name: relative_error(getattr(stats[1], name).double(), getattr(stats[0], name).double())
        for name in case.outputs
    }
    here = slice(shard.start, shard.stop)
    errors["d_hidden"] = relative_error(part.hidden.grad.double(), whole.hidden.grad.double())
    for name in ("weight", "bias"):
        if getattr(whole, name) is not None and getattr(whole, name).requires_grad:
            ours, want = getattr(part, name).grad, getattr(whole, name).grad[here]
            errors[f"d_{name}"] = relative_error(ours.double(), want.double()) if len(want) else 0.0
    return {name: float(error) for name, error in errors.items()}


def greedy_found() -> bool:
    """Whether logp equals max_logp, to the bit, at the likeliest class and nowhere else."""
    options = {"softcap": 5.0, "logit_scale": 0.7, "temperature": 1.3}
    problem = build(Case(tokens=40, ignored=()), torch.float32)
    shard = VocabShard(dist.group.WORLD, vocab_size=len(problem.weight))
    best = (problem.hidden.double() @ problem.weight.double().T + problem.bias).argmax(1)
    weight, bias = slice_of(shard, problem.weight), slice_of(shard, problem.bias)
    found = []
    for targets in (best, (best + 1) % len(problem.weight)):
        stats = token_stats(
            *(problem.hidden, weight, targets, bias),
            outputs=("logp", "max_logp"),
            vocab_shard=shard,
            **options,
        )
        found.append(stats.logp == stats.max_logp)
    return bool(found[0].all()) and not bool(found[1].any())


def loss_errors(name: str, passes: str, pairs: int) -> dict[str, float]:
    """The same for the whole loss."""
    whole, part = sample(True), sample(True)
    shard = VocabShard(dist.group.WORLD, vocab_size=len(whole["weight"]))
    for key in ("weight", "ref_weight"):
        part[key] = slice_of(shard, part[key])
    losses = []
    for x, options in ((whole, {}), (part, {"vocab_shard": shard})):
        if pairs == 1:
            x["segments"] = torch.where(x["segments"] < 2, x["segments"], -1)
        out = fused_preference_loss(objective=OBJECTIVES[name], passes=passes, **x, **options)
        out.loss.backward()
        losses.append(out.loss.detach())
    want = whole["weight"].grad[shard.start : shard.stop]
    return {
        "loss": float((losses[1] - losses[0]).abs()),
        "d_hidden": float(relative_error(part["hidden"].grad, whole["hidden"].grad)),
        "d_weight": float(relative_error(part["weight"].grad, want)),
    }


def refusals() -> dict[str, str]:
    """Messages of the mistakes that users make."""
    group, messages = dist.group.WORLD, {}
    x = sample(True)
    attempts: dict[str, dict[str, Any]] = {
        "whole weight": {},
        "another reference": {"ref_weight": x["ref_weight"][:5]},
        "by definition": {"backend": "reference"},
    }
    for name, change in attempts.items():
        shard = VocabShard(group, vocab_size=len(x["weight"]))
        arguments = {**x, **change}
        if name != "whole weight":
            arguments["weight"] = slice_of(shard, x["weight"])
        try:
            fused_preference_loss(objective=DPO(), vocab_shard=shard, **arguments)
        except ValueError as error:
            messages[name] = str(error)
    return messages


def work(rank: int, world: int, folder: str) -> None:
    join(rank, world, folder)
    found: dict[str, Any] = {}
    for name, case in CASES.items():
        found[f"fp64 {name}"] = stats_errors(case, "torch", torch.float64)
        found[f"fp32 {name}"] = stats_errors(case, "torch", torch.float32)
    small = Case(tokens=5, ignored=(1,), vocab=61, ref_vocab=61, outputs=ALL)
    found["fp32 triton"] = stats_errors(small, "triton", torch.float32)
    for objective in OBJECTIVES:
        for passes, pairs in (("one_pass", 1), ("keep_dz", 2), ("two_pass", 2)):
            if objective != "nll" or passes == "two_pass":
                errors = loss_errors(objective, passes, pairs)
                found[f"fp64 {objective} {passes}"] = errors
    report = {"errors": found, "greedy": greedy_found(), "messages": refusals()}
    Path(folder, f"{rank}.json").write_text(json.dumps(report))
    leave_group()
