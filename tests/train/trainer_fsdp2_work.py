"""What each of two gloo processes does in `test_trainer_fsdp2.py`: all cases in one launch."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from prefkit.train.checkpointing.leaving import leave_group
from tests.train.trainer_fsdp2_cases import CASES, run, save

if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    for place, case in enumerate(CASES.values()):
        found = run(case, folder / str(place))
        if dist.get_rank() == 0:
            save(found, folder / f"{place}.pt")
    leave_group()
