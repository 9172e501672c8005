"""What two gloo processes do in `test_fsdp2.py`: every layout of FSDP2 in one launch.

Starting processes is what costs. Each case gives plain numbers, and the tests judge them.
"""

import copy
import json
import os
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor

from prefkit.errors import ModelError
from prefkit.model.head.fused import find_head, install
from prefkit.model.reference.policy import Reference
from prefkit.train.checkpointing.leaving import leave_group
from prefkit_kernels import token_stats
from tests.model.fsdp2_cases import (
    BF16,
    LAYOUTS,
    MINE,
    OBJECTIVES,
    ONE_EACH,
    WORLD,
    Layout,
    batch,
    loss_of,
    models,
    shard,
)
from tests.train.trainer_cases import tiny_model


def compared(model: nn.Module, plain: nn.Module) -> dict[str, float]:
    """Largest error of a gradient, relative to that parameter's largest, and over all as norms."""
    worst, error, norm = 0.0, 0.0, 0.0
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        if theirs.grad is None:
            assert ours.grad is None, name
            continue
        assert isinstance(ours.grad, DTensor), f"{name}: {type(ours.grad)}"
        delta = ours.grad.full_tensor() - theirs.grad
        worst = max(worst, float(delta.abs().max() / theirs.grad.abs().max()))
        error, norm = error + float(delta.square().sum()), norm + float(theirs.grad.square().sum())
    return {"largest": worst, "relative_norm": (error / norm) ** 0.5}


def gradients(
    layout: Layout, mesh: DeviceMesh, policy: MixedPrecisionPolicy | None = None
) -> dict[str, Any]:
    """Loss and gradients of two sharded ranks against one process on all pairs."""
    plain, plain_reference = models(layout)
    model, reference = copy.deepcopy(plain), copy.deepcopy(plain_reference)
    head, objective = find_head(model), OBJECTIVES[layout.objective]
    shares = ONE_EACH if layout.passes == "one_pass" else MINE
    pairs = [pair for share in shares for pair in share]
    whole = Reference(plain_reference, find_head(plain_reference))
    want = loss_of(plain, head, whole, pairs, objective, len(pairs), backend="reference")
    want.backward()
    sharded = Reference(reference, find_head(reference))
    for part in (model, reference):
        shard(part, mesh, layout.head, layout.reshard, policy)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(layout.steps):
            got = loss_of(
                model,
                head,
                sharded,
                shares[mesh.get_local_rank()],
                objective,
                len(pairs) / WORLD,
                passes=layout.passes,
            )
            (got / layout.steps).backward()
    mean = got.detach() / WORLD
    dist.all_reduce(mean)
    return {
        "loss": mean.item(),
        "want": want.item(),
        "views": sum("view tensor" in str(one.message) for one in caught),
        **compared(model, plain),
    }


def adapter_gradients(mesh: DeviceMesh) -> dict[str, float]:
    """LoRA: the reference is the sharded policy itself, so both read the same gathered head."""
    torch.manual_seed(0)
    config = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", init_lora_weights=False)
    plain = get_peft_model(tiny_model(scale=3.0), config)
    install(plain)
    model = copy.deepcopy(plain)
    heads = find_head(plain), find_head(model)
    shard(model, mesh, "own", True)
    shares = [0, 1, 2], MINE[mesh.get_local_rank()]
    for head, part, pairs, ranks in zip(heads, (plain, model), shares, (1, WORLD), strict=True):
        reference = Reference(part, head, adapter_owner=part)
        loss_of(part, head, reference, pairs, OBJECTIVES["tdpo"], 3 / ranks).backward()
    return compared(model, plain)


def reference_memory(mesh: DeviceMesh, place: str) -> dict[str, Any]:
    """What of a sharded reference is in memory when, and whether its head is what it should be."""
    model = tiny_model(seed=1, scale=3.0).requires_grad_(False)
    head, whole = install(model), model.lm_head.weight.detach().clone()
    shard(model, mesh, place, True)
    inputs, rows, targets, _ = batch([0])
    seen: list[Tensor] = []

    def request(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
        seen.append(weight)
        return hidden[:0], {}

    def gathered() -> list[str]:
        return [name for name, value in model.named_parameters() if not isinstance(value, DTensor)]

    with torch.no_grad():
        model(**inputs, prefkit_request=request)
    unheld = seen[0].untyped_storage().size()
    reference = Reference(model, head)
    reference.logp(inputs, rows, targets)
    after_logp = gathered()
    weight = reference.operands(inputs, rows, head.transform, head.vocab_size)["ref_weight"]
    assert weight is not None
    reference.logp(inputs, rows, targets)  # must not free what a loss may still have to read
    return {
        "unheld": unheld,
        "after_logp": after_logp,
        "after_operands": gathered(),
        "right": torch.equal(weight, whole),
    }


def late_install(mesh: DeviceMesh) -> dict[str, Any]:
    """`install` after `fully_shard`: the proof runs through the root and leaves shards behind.

    In all processes, also where only the first of them has loaded the model.
    """
    layout = Layout(family="gemma2", head="tail")
    plain, _ = models(layout)
    model = tiny_model("gemma2", scale=3.0)
    shard(model, mesh, "tail", True)
    loading = {"ACCELERATE_USE_FSDP": "1", "FSDP_CPU_RAM_EFFICIENT_LOADING": "1"}
    with patch.dict(os.environ, loading, LOCAL_RANK=str(mesh.get_local_rank())):
        head = install(model)
    shards = all(isinstance(value, DTensor) for value in model.parameters())
    logp = []
    for part, pairs in ((plain, [0, 1, 2]), (model, MINE[mesh.get_local_rank()])):
        reference = Reference(part, head)
        inputs, rows, targets, _ = batch(pairs)
        logp.append(reference.logp(inputs, rows, targets).sum())
    dist.all_reduce(logp[1])
    return {
        "softcap": head.transform.softcap,
        "shards": shards,
        "logp": logp[1].item(),
        "want": logp[0].item(),
    }


def message_of(call: Callable[[], Any]) -> str:
    """The kind and text of the error that `call` must raise."""
    try:
        call()
    except (ModelError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    raise AssertionError("nothing was raised")


def shards_by_hand(mesh: DeviceMesh) -> dict[str, Any]:
    """A DTensor as the head's weight: the refusals, and the gradient with the named remedy."""
    rank, vocab, width = mesh.get_local_rank(), 24, 8
    seeds = torch.Generator().manual_seed(3)
    whole = torch.randn(vocab, width, generator=seeds).requires_grad_()
    hidden = torch.randn(WORLD, 5, width, generator=seeds)
    targets = torch.randint(0, vocab, (WORLD, 5), generator=seeds)
    weight = nn.Parameter(distribute_tensor(whole.detach(), mesh, [Shard(0)]))
    refused = message_of(lambda: token_stats(hidden[rank], weight, targets[rank]))  # type: ignore
    model = tiny_model()
    model.lm_head.weight = nn.Parameter(
        distribute_tensor(model.lm_head.weight.detach(), mesh, [Shard(0)])
    )
    never_whole = message_of(lambda: install(model))

    gathered = weight.full_tensor(grad_placements=[Partial("avg")])  # type: ignore[attr-defined]
    token_stats(hidden[rank], gathered, targets[rank]).logp.sum().backward()  # type: ignore
    for part in range(WORLD):
        (token_stats(hidden[part], whole, targets[part]).logp.sum() / WORLD).backward()  # type: ignore
    error = (weight.grad.full_tensor() - whole.grad).abs().max() / whole.grad.abs().max()  # type: ignore
    return {"token_stats": refused, "install": never_whole, "error": float(error)}


def work(rank: int, folder: str) -> None:
    """All cases, in one process of the two; rank 0 writes `results.json`."""
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", WORLD)
    wait = timedelta(seconds=60)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD, timeout=wait)
    mesh = init_device_mesh("cpu", (WORLD,))
    results: dict[str, Any] = {str(layout): gradients(layout, mesh) for layout in LAYOUTS}
    for place in ("own", "root", "tail"):
        results[f"bf16-{place}"] = gradients(Layout(head=place), mesh, BF16)
        results[f"memory-{place}"] = reference_memory(mesh, place)
    results["adapter"] = adapter_gradients(mesh)
    results["late"] = late_install(mesh)
    results["by hand"] = shards_by_hand(mesh)
    if rank == 0:
        Path(folder, "results.json").write_text(json.dumps(results))
    leave_group()
