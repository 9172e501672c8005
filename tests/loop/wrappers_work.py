"""What two gloo processes do in `test_wrappers.py`: every wrapper in one launch.

Starting processes is what costs. Each case gives plain numbers and words, and the tests judge them.
"""

import contextlib
import copy
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from prefkit import fused_preference_loss, install, preference_loss, reference_logp
from prefkit.train.checkpointing.leaving import leave_group
from tests.gloo import join
from tests.loop.loop_cases import OBJECTIVES, batch_of, by_definition
from tests.train.trainer_cases import tiny_model

WORLD, STEPS, RATE = 2, 2, 0.3
SHARES = ([0, 1], [2, 3])  # pairs of each process
EVERY = [0, 1, 2, 3]


def models(family: str = "llama", lora: bool = False) -> tuple[Any, Any]:
    """A policy and a frozen reference; with an adapter the policy's base is the reference."""
    reference = tiny_model(family, scale=3.0).requires_grad_(False)
    if not lora:
        return tiny_model(family, seed=1, scale=3.0), reference
    torch.manual_seed(2)
    config = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", init_lora_weights=False)
    return get_peft_model(copy.deepcopy(reference), config), reference


def by_layers(model: Any) -> Any:
    """FSDP2, a unit for each layer and one for the rest."""
    body = model.get_base_model() if hasattr(model, "get_base_model") else model
    for layer in body.model.layers:
        fully_shard(layer)
    return fully_shard(model)


def fsdp1(model: Any) -> Any:
    layers = ModuleWrapPolicy({type(model.model.layers[0])})
    device = torch.device("cpu")
    return FullyShardedDataParallel(
        model, auto_wrap_policy=layers, use_orig_params=True, device_id=device
    )


def whole(model: Any) -> list[torch.Tensor]:
    """The trained parameters of this process, gathered where they are sharded."""
    if isinstance(model, FullyShardedDataParallel):
        with FullyShardedDataParallel.summon_full_params(model):
            return [p.detach().clone() for p in model.parameters() if p.requires_grad]
    found = [p.detach() for p in model.parameters() if p.requires_grad]
    return [p.full_tensor() if isinstance(p, DTensor) else p for p in found]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A way to train two replicas.

    Attributes:
        wrap, wrap_reference: put the models into their wrappers.
        objective: its name.
        family, lora: of `models`.
        before: `install` is called before wrapping.
        cached: the batch brings the reference.
        parts: batches that each process's pairs come in.
    """

    wrap: Callable[[Any], Any]
    wrap_reference: Callable[[Any], Any] = lambda model: model
    objective: str = "tdpo"
    family: str = "llama"
    lora: bool = False
    before: bool = False
    cached: bool = False
    parts: int = 1


def trained(case: Case) -> dict[str, Any]:
    """Two steps of both processes, against those of one by whole logits on all pairs."""
    objective, shares = OBJECTIVES[case.objective], SHARES[dist.get_rank()]
    policy, reference = models(case.family, case.lora)
    plain = copy.deepcopy(policy), copy.deepcopy(reference)
    if case.before:
        install(policy), install(reference)
    model, given = case.wrap(policy), case.wrap_reference(reference)
    batches = [batch_of(shares[part :: case.parts]) for part in range(case.parts)]
    if case.cached:
        for batch in batches:
            batch["ref_logp"] = reference_logp(given, batch)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    other = torch.optim.SGD(plain[0].parameters(), lr=RATE)
    losses, want = [], []
    for _ in range(STEPS):
        mean = torch.zeros(())
        for batch in batches:
            apart = None if case.lora or case.cached else given
            last = batch is batches[-1]
            waiting = contextlib.nullcontext() if last else model.no_sync()
            with waiting:
                loss = preference_loss(model, batch, objective, apart, len(EVERY) / WORLD).loss
                loss.backward()
            mean += loss.detach() / WORLD
        optimizer.step(), optimizer.zero_grad()
        dist.all_reduce(mean)
        losses.append(mean.item())
        one = by_definition(*plain, batch_of(EVERY), objective)
        one.backward()
        other.step(), other.zero_grad()
        want.append(one.item())
    return {"losses": losses, "want": want, **compared(whole(model), plain[0])}


def compared(ours: list[torch.Tensor], plain: nn.Module) -> dict[str, float]:
    """Largest error of a parameter, relative to its largest; and how far the replicas are apart."""
    theirs = [p.detach() for p in plain.parameters() if p.requires_grad]
    pairs = list(zip(ours, theirs, strict=True))
    error = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
    apart = 0.0
    for value in ours:
        first = value.clone()
        dist.broadcast(first, 0)
        apart = max(apart, float((first - value).abs().max()))
    return {"error": error, "apart": apart}


def said(call: Callable[[], Any]) -> list[str]:
    """The warnings of prefkit, or the error, that a call gives."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            call()
        except (RuntimeError, TypeError, ValueError) as error:
            return [f"{type(error).__name__}: {error}"]
    return [str(one.message) for one in caught if "prefkit" in str(one.message)]


def around(model: Any, reference: Any, batch: Any) -> Any:
    """The loss as a loop for one process computes it: body and head by themselves."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    hidden = model.base_model(**inputs).last_hidden_state.flatten(0, 1)[batch["positions"]]
    return fused_preference_loss(
        hidden,
        model.lm_head.weight,
        batch["targets"],
        batch["segments"],
        OBJECTIVES["dpo"],
        ref_logp=reference_logp(reference, batch),
    ).loss


def called_around() -> dict[str, list[str]]:
    """What is said of losses that are computed around a wrapper, and of those that are not."""
    dpo, batch = OBJECTIVES["dpo"], batch_of(SHARES[dist.get_rank()])
    found: dict[str, list[str]] = {}
    for case in ("plain", "installed", "unwrapped", "evaluated", "no gradient"):
        policy, reference = models()
        if case == "installed":
            install(policy)
        model = DistributedDataParallel(policy)
        if case == "evaluated":
            model(batch["input_ids"])
        if case == "unwrapped":
            found[case] = said(partial(preference_loss, model.module, batch, dpo, reference))
        else:
            with torch.set_grad_enabled(case != "no gradient"):
                found[case] = said(partial(around, policy, reference, batch))
        if case == "evaluated":
            found["evaluated, again"] = said(partial(around, policy, reference, batch))
    model = DistributedDataParallel(models()[0])
    found["the right way"] = said(partial(preference_loss, model, batch, dpo, models()[1]))
    unwrapped = partial(preference_loss, model.module, batch, dpo, models()[1])
    found["the right way, then unwrapped"] = said(unwrapped)
    found["unwrapped, again"] = said(unwrapped)
    policy, _ = models()
    install(policy)
    model = DistributedDataParallel(policy)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    asked = partial(policy, **inputs, prefkit_request=lambda hidden, *_: (hidden.sum(), {}))
    found["a request, unwrapped"] = said(asked)
    policy, reference = models()
    found["no wrapper"] = said(partial(around, policy, reference, batch))
    policy, reference = models()
    install(policy)
    found["no wrapper, installed"] = said(partial(around, policy, reference, batch))
    return found


def shards() -> dict[str, list[str]]:
    """What is said of weights that are not in memory."""
    batch = batch_of(SHARES[dist.get_rank()])
    hidden = torch.randn(len(batch["positions"]), 16)
    rest = batch["targets"], batch["segments"], OBJECTIVES["simpo"]
    freed = torch.randn(264, 16)
    freed.untyped_storage().resize_(0)
    policy = by_layers(models()[0])
    late = fsdp1(models()[0])
    return {
        "fsdp2": said(partial(fused_preference_loss, hidden, policy.lm_head.weight, *rest)),
        "freed": said(partial(fused_preference_loss, hidden, freed, *rest)),
        "fsdp1, not installed": said(partial(preference_loss, late, batch, OBJECTIVES["simpo"])),
    }


DDP = DistributedDataParallel
CASES = {
    "ddp": Case(wrap=DDP, objective="dpo"),
    "ddp, softcap": Case(wrap=DDP, family="gemma2"),
    "ddp, installed before, tied": Case(wrap=DDP, before=True, family="llama-tied"),
    "ddp, cached": Case(wrap=DDP, objective="dpo", cached=True),
    "ddp, adapter": Case(wrap=DDP, lora=True),
    "ddp, accumulated": Case(wrap=DDP, parts=2),
    "ddp, no reference": Case(wrap=DDP, objective="simpo", cached=True),
    "ddp, unused parameters": Case(wrap=lambda model: DDP(model, find_unused_parameters=True)),
    "compile around ddp": Case(wrap=lambda model: torch.compile(DDP(model), backend="aot_eager")),
    "ddp around compile": Case(wrap=lambda model: DDP(torch.compile(model, backend="aot_eager"))),
    "fsdp2": Case(wrap=by_layers, wrap_reference=by_layers),
    "fsdp2, installed before, softcap": Case(
        wrap=by_layers, wrap_reference=by_layers, before=True, family="gemma2"
    ),
    "fsdp2, whole reference": Case(wrap=by_layers),
    "fsdp2, adapter": Case(wrap=by_layers, lora=True),
    "fsdp1": Case(wrap=fsdp1, wrap_reference=fsdp1, before=True, objective="dpo"),
    "fsdp1, whole reference": Case(wrap=fsdp1, before=True),
}


def work(rank: int, folder: str) -> None:
    """All cases, in one process of the two; each writes its own results."""
    join(rank, WORLD, folder)
    results: dict[str, Any] = {name: trained(case) for name, case in CASES.items()}
    results |= {"around": called_around(), "shards": shards()}
    Path(folder, f"{rank}.json").write_text(json.dumps(results))
    leave_group()
