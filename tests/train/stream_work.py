"""What each of two processes does for `test_streams.py`: a run on a stream, and a resumed one."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch.distributed as dist

from prefkit.errors import ConfigError
from tests.train.test_streams import same_weights, stream
from tests.train.trainer_cases import trainer

OPTIONS: dict[str, Any] = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
OPTIONS |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "use_cpu": True}


def noting(made: Any) -> list[list[int]]:
    """The chosen sides that a trainer's batches hold, from now on."""
    seen: list[list[int]] = []
    collate = made.data_collator

    def collated(items: list) -> Any:
        seen.extend(item[1].chosen.ids.tolist() for item in items if isinstance(item, tuple))
        return collate(items)

    made.data_collator = collated
    return seen


def run_streams(folder: Path) -> None:
    """Writes what this process has seen of the stream into `folder`."""
    whole = trainer(folder / "whole", rows=stream(), **OPTIONS)
    rank = whole.args.process_index
    first = noting(whole)
    whole.train()
    if rank == 0:
        shutil.copytree(folder / "whole" / "checkpoint-2", folder / "again" / "checkpoint-2")
    dist.barrier()
    again = trainer(folder / "again", rows=stream(), **OPTIONS)
    rest = noting(again)
    again.train("auto")
    mixed = trainer(folder / "mixed", rows=stream().shuffle(buffer_size=100), **OPTIONS)
    try:
        mixed.train()
        said = ""
    except ConfigError as error:
        said = str(error)
    found = {"seen": first, "rest": rest, "same": same_weights(whole, again), "said": said}
    (folder / f"{rank}.json").write_text(json.dumps(found))
