"""How a process of a run leaves the others: before Python shuts down.

Gloo's threads let go of a collective's tensors a moment after it has ended, and need Python for it.
Where Python is shutting down by then, the process aborts (pytorch/pytorch#179291) and the launcher
reports a failure, after a run that went well. The script of tests/train/test_leaving.py, started
one by one with `destroy_process_group()` as its end: 2 of 8 runs on two idle cores, 4 of 8 beside
two busy processes (torch 2.13).
"""

import time

import torch.distributed as dist

_LET_GO = 0.2  # seconds; waiting for the threads' end instead may wait for ever: they need Python


def leave_group() -> None:
    """Leaves torch's process group, if there is one: the last thing a process of a run does."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
        time.sleep(_LET_GO)
