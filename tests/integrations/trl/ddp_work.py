"""What each of two processes of `test_distributed` runs: both trainers, on the same rows."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from tests.integrations.trl.cases import datasets, ours, theirs, trainer
from tests.train.trainer_cases import ROWS

CASES: dict[str, dict[str, Any]] = {
    "full": {},
    # The last batch of an evaluation is filled up: 7 rows over 2 processes by 2.
    "evaluated": {"eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 2},
    "accumulated": {"gradient_accumulation_steps": 2},
    "precomputed": {"precompute_ref_log_probs": True},
}


def rows_on_disk(folder: Path) -> Any:
    """Where all processes find what TRL precomputes for them."""
    with PartialState().main_process_first():
        if not folder.exists():
            datasets.Dataset.from_list(ROWS).save_to_disk(folder)
    return datasets.load_from_disk(folder)


def run(kind: type, name: str, folder: Path) -> dict[str, Any]:
    """Log lines and the last weights of a run of three steps."""
    own = {"eval_dataset": ROWS[:7]} if name == "evaluated" else {}
    small = {"max_steps": 3, "per_device_train_batch_size": 2}
    rows = rows_on_disk(folder / f"{name}-{kind.__module__}")
    made = trainer(kind, folder, rows=rows, **own, **{**small, **CASES[name]})
    made.train()
    flat = torch.cat([p.detach().flatten() for p in made.model.parameters()])
    return {"logs": made.state.log_history, "weights": flat.tolist()}


def main(folder: Path) -> None:
    found = {
        name: [run(kind, name, folder / "out") for kind in (ours(), theirs())] for name in CASES
    }
    if torch.distributed.get_rank() == 0:
        (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
