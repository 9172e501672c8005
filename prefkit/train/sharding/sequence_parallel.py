"""Processes that share rows: who shares with whom.

`sequence_parallel_size` processes with consecutive ranks hold a piece of each row. Every process
still reads its own pairs; the group trains on its members' batches in turn
(`prefkit.train.step.pair_loss`), so a step has as many pairs as without sharing and a process holds
the activations of one piece at a time. What cannot be shared: `prefkit.train.checks.shared_rows`.
"""

import torch.distributed as dist


def join_group(size: int) -> dist.ProcessGroup | None:
    """The group of this process, or None where each has its rows for itself."""
    if size == 1:
        return None
    group, _ = dist.new_subgroups(size)
    return group
