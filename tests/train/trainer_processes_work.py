"""What each of several gloo processes does: `test_trainer_processes.py`'s cases, and streams."""

import json
import os
import sys
from pathlib import Path

import torch

from prefkit.train.checkpointing.leaving import leave_group
from tests.train.stream_work import run_streams
from tests.train.trainer_processes_cases import CASES, run

if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, processes = Path(sys.argv[1]), int(os.environ["WORLD_SIZE"])
    for place, case in enumerate(CASES.values()):
        if case.processes == processes:
            found = run(case, folder / str(place), processes)
            if os.environ["RANK"] == "0":
                (folder / f"{place}.json").write_text(json.dumps(found))
    if processes == 2:
        run_streams(folder / "stream")
    leave_group()
