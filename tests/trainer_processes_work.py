"""What each of several gloo processes does in `test_trainer_processes.py`: all its cases."""

import json
import os
import sys
from pathlib import Path

import torch

from prefkit.train.leaving import leave_group
from tests.trainer_processes_cases import CASES, run

if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, processes = Path(sys.argv[1]), int(os.environ["WORLD_SIZE"])
    for place, case in enumerate(CASES.values()):
        if case.processes == processes:
            found = run(case, folder / str(place), processes)
            if os.environ["RANK"] == "0":
                (folder / f"{place}.json").write_text(json.dumps(found))
    leave_group()
