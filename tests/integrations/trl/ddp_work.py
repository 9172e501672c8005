"""What each of two processes of `test_distributed` runs: both trainers, on the same rows."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch.distributed.fsdp import fully_shard

from prefkit.integrations.trl.batch import ROW
from tests.integrations.trl.cases import datasets, one_step, our_config, ours, theirs, trainer
from tests.train.trainer_cases import ROWS

CASES: dict[str, dict[str, Any]] = {
    "full": {},
    # The last batch of an evaluation is filled up: 7 rows over 2 processes by 2.
    "evaluated": {"eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 2},
    "accumulated": {"gradient_accumulation_steps": 2},
    "precomputed": {"precompute_ref_log_probs": True},
}

# accelerate cuts the batches of a stream for both processes, so all must be of one length.
STREAM = {"per_device_eval_batch_size": 2, "pad_to_multiple_of": 64}
STREAMS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {  # rows of each shard, and options
    "streamed": ((6, 2), {"eval_strategy": "steps", "eval_steps": 2}),
    "streamed later": ((6, 2), {}),
    "shards of their own": ((4, 4), {"accelerator_config": {"dispatch_batches": False}}),
}

SHARDED = ("dpo", "tdpo2")


def rows_on_disk(folder: Path) -> Any:
    """Where all processes find what TRL precomputes for them."""
    folder.parent.mkdir(exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            datasets.Dataset.from_list(ROWS).save_to_disk(folder)
    return datasets.load_from_disk(folder)


def stream(shards: tuple[int, ...]) -> Any:
    """A stream of rows in shards, each of so many."""
    starts = [sum(shards[:index]) for index in range(len(shards))]
    cut = [ROWS[start : start + size] for start, size in zip(starts, shards, strict=True)]
    one_by_one: Any = lambda shards: (row for shard in shards for row in shard)  # noqa: E731
    return datasets.IterableDataset.from_generator(one_by_one, gen_kwargs={"shards": cut})


def run(kind: type, name: str, folder: Path) -> dict[str, Any]:
    """Log lines and the last weights of a run of three steps."""
    shards, options = STREAMS.get(name, ((), CASES.get(name, {})))
    own, later = {"eval_dataset": ROWS[:7]} if name == "evaluated" else {}, name == "streamed later"
    if shards:
        own, options = {} if later else {"eval_dataset": stream(shards)}, {**STREAM, **options}
    small = {"max_steps": 3, "per_device_train_batch_size": 2}
    rows = rows_on_disk(folder / f"{name}-{kind.__module__}")
    made = trainer(kind, folder, rows=rows, **own, **{**small, **options})
    before = ROW in next(iter(made.get_train_dataloader()))
    made.train()
    if shards:
        made.evaluate(stream(shards) if later else None)
    flat = torch.cat([p.detach().flatten() for p in made.model.parameters()])
    after = ROW in next(iter(made.get_train_dataloader()))
    logs = made.state.log_history
    return {"logs": logs, "weights": flat.tolist(), "shared": [before, after]}


def sharded(folder: Path, method: str) -> dict[str, Any]:
    """Loss and gradients of a batch that both processes have, of models that FSDP2 has sharded
    before prefkit sees them; and those of whole models."""
    found = {}
    for name in ("whole", "sharded"):
        options = {"config": our_config(), "prefkit_layout": "padded", "prefkit_method": method}
        made = trainer(ours(), folder, **options)
        batch = made.data_collator([made.train_dataset[i] for i in range(4)])
        if name == "sharded":
            del made._prefkit  # as where TRL shards the reference in its constructor
            for model in (made.model, made.ref_model):
                for layer in model.model.layers:
                    fully_shard(layer)
                fully_shard(model)
        loss, grads, _ = one_step(made, batch)
        whole = [getattr(grad, "full_tensor", lambda grad=grad: grad)() for grad in grads.values()]
        found[name] = [loss, torch.cat([grad.flatten() for grad in whole]).tolist()]
    return found


def main(folder: Path) -> None:
    found: dict[str, Any] = {
        name: [run(kind, name, folder / "out") for kind in (ours(), theirs())]
        for name in (*CASES, *STREAMS)
    }
    found |= {method: sharded(folder / "out", method) for method in SHARDED}
    if torch.distributed.get_rank() == 0:
        (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
