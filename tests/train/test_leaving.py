"""A run of several processes that went well ends well: no thread is left to ask for Python."""

from pathlib import Path

import pytest

from tests.torchrun import launch

# One after the other: with destroy_process_group() alone a quarter to a half of them abort.
RUNS = 4
SCRIPT = """
import torch
import torch.distributed as dist

from prefkit.train.checkpointing.leaving import leave_group

dist.init_process_group("gloo")
torch.set_num_threads(1)
group = dist.new_group([0, 1])
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(300, 300))
for _ in range(20):
    model(torch.randn(4, 300)).sum().backward()
found = [torch.empty(30, 30) for _ in range(2)]
for _ in range(10):
    dist.all_gather(found, torch.randn(30, 30), group=group)
    dist.all_reduce(torch.randn(1000))
leave_group()
"""


@pytest.mark.slow
def test_processes_leave_without_an_abort(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    for _ in range(RUNS):
        run = launch(2, script, seconds=60)
        assert run.returncode == 0, run.stderr[-2000:]
