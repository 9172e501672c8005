"""A loop with a DeepSpeed engine of ZeRO-3, in two gloo processes; see `test_zero3.py`."""

import copy
import json
import sys
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist

from prefkit import fused_preference_loss, preference_loss
from prefkit.train.checkpointing.leaving import leave_group
from tests.loop.loop_cases import OBJECTIVES, batch_of, by_definition
from tests.loop.wrappers_work import EVERY, RATE, SHARES, STEPS, WORLD, compared, models, said

CONFIG = {
    "train_micro_batch_size_per_gpu": 1,
    "zero_optimization": {"stage": 3},
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
    "gradient_clipping": 0.0,  # its default is 1
}


def engine_of(model: Any) -> Any:
    """The model in an engine of its own, that trains it if it trains at all."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=RATE) if trained else None
    return deepspeed.initialize(model=model, optimizer=optimizer, config=CONFIG)[0]


def trained(name: str, lora: bool, sharded: bool) -> dict[str, Any]:
    """Two steps of both processes, against those of one by whole logits on all pairs."""
    policy, reference = models(lora=lora)
    plain = copy.deepcopy(policy), copy.deepcopy(reference)
    engine = engine_of(policy)
    given = None if lora else engine_of(reference) if sharded else reference
    other = torch.optim.SGD(plain[0].parameters(), lr=RATE)
    batch, losses, want = batch_of(SHARES[dist.get_rank()]), [], []
    for _ in range(STEPS):
        loss = preference_loss(engine, batch, OBJECTIVES[name], given).loss
        engine.backward(loss)
        engine.step()
        mean = loss.detach() / WORLD
        dist.all_reduce(mean)
        losses.append(mean.item())
        one = by_definition(*plain, batch_of(EVERY), OBJECTIVES[name])
        one.backward()
        other.step(), other.zero_grad()
        want.append(one.item())
    parameters = [p for p in policy.parameters() if p.requires_grad]
    with deepspeed.zero.GatheredParameters(parameters):
        found = [p.detach().clone() for p in parameters]
    return {"losses": losses, "want": want, **compared(found, plain[0])}


def around() -> list[str]:
    """What is said of a weight that is partitioned."""
    engine, batch = engine_of(models()[0]), batch_of(SHARES[dist.get_rank()])
    hidden, weight = torch.randn(len(batch["positions"]), 16), engine.module.lm_head.weight
    rest = batch["targets"], batch["segments"], OBJECTIVES["simpo"]
    return said(lambda: fused_preference_loss(hidden, weight, *rest))


if __name__ == "__main__":
    deepspeed.init_distributed("gloo")
    results = {
        "dpo": trained("dpo", lora=False, sharded=True),
        "tdpo": trained("tdpo", lora=False, sharded=True),
        "tdpo, whole reference": trained("tdpo", lora=False, sharded=False),
        "adapter": trained("tdpo", lora=True, sharded=False),
        "around": around(),
    }
    Path(sys.argv[1], f"{dist.get_rank()}.json").write_text(json.dumps(results))
    leave_group()
