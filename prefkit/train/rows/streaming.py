"""Training on a stream: who reads which rows, and where it goes on.

The rows of a stream are shared out among the processes, and each tokenises its own. A checkpoint
holds where each process stood, so that a resumed run reads on from there. The position itself is
kept by `StreamedRows`; of rows that are no stream these functions leave everything as it is.
"""

from pathlib import Path
from typing import Any

import torch.distributed as dist
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader

from prefkit.data.streamed.rows import StreamedRows
from prefkit.errors import ConfigError


def stream_loader(stream: StreamedRows, batch_size: int, collator: Any, args: Any) -> DataLoader:
    """The batches of this process's part of a stream: nothing is shared out again.

    Args:
        stream: this process's part.
        batch_size: of one process and one forward.
        collator: of the run.
        args: `device` is read.

    Raises:
        ConfigError: the processes see the stream in different orders.
    """
    _check_order(stream)
    return prepare_data_loader(
        DataLoader(stream, batch_size, collate_fn=collator, drop_last=True),
        args.device,
        num_processes=1,
        process_index=0,
        put_on_device=True,
        dispatch_batches=False,
    )


def use(rows: Any, batches: list) -> None:
    """Notes the rows that were taken for training: the next checkpoint stands behind them."""
    if isinstance(rows, StreamedRows):
        rows.use(sum(len(batch["pair_index"]) for batch in batches))


def states(rows: Any, args: Any) -> list[Any] | None:
    """Where each process stands in the stream, None without one; every process must ask."""
    if not isinstance(rows, StreamedRows):
        return None
    found: list[Any] = [rows.state()]
    if args.world_size > 1:
        found *= args.world_size
        dist.all_gather_object(found, found[args.process_index])
    return found


def start(rows: Any) -> None:
    """Makes a stream begin at its beginning."""
    if isinstance(rows, StreamedRows):
        rows.go_to()


def resume(rows: Any, saved: list[Any] | None, folder: Path, args: Any, passed: int) -> None:
    """Makes a stream begin where it stood.

    Args:
        rows: the training rows.
        saved: of `states`, as the checkpoint holds them.
        folder: the checkpoint.
        args: `world_size` and `process_index` are read.
        passed: rows that transformers will drop because they have been trained on.

    Raises:
        ConfigError: the checkpoint is of another number of processes, or of rows that were no
            stream.
    """
    if not isinstance(rows, StreamedRows):
        if saved is not None:
            raise ConfigError(
                f"{folder} is of a run on a stream, and train_dataset is none. Give the stream "
                "again."
            )
        return
    if saved is None or len(saved) != args.world_size:
        were = "rows that were no stream" if saved is None else f"{len(saved)} processes"
        raise ConfigError(
            f"train_dataset is a stream for {args.world_size} process(es), and {folder} "
            f"is of {were}. Go on as then, or start anew."
        )
    rows.go_to(saved[args.process_index], passed)


def _check_order(stream: StreamedRows) -> None:
    """Compares what the processes see of the stream before it is shared out.

    Raises:
        ConfigError: different first rows.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    seen: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(seen, stream.first_rows())
    if any(one != seen[0] for one in seen):
        raise ConfigError(
            "The processes see the stream in different orders, and would train on some rows twice "
            "and on others never. Give its shuffle a seed: .shuffle(seed=42)."
        )
