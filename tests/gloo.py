"""How a process of a test joins the others: gloo, a file to meet at, and an end to all waiting."""

from datetime import timedelta

import torch
import torch.distributed as dist


def join(rank: int, world: int, folder: str) -> None:
    """Joins `world` processes as number `rank`; `folder` is theirs alone."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        f"file://{folder}/rendezvous",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=60),
    )
