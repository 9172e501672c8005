"""Streams: who reads which rows to train on, and where it goes on; those to evaluate on, whole.

The rows to train on are shared out among the processes, and each tokenises its own. A checkpoint
holds where each process stood, so that a resumed run reads on from there. The position itself is
kept by `StreamedRows`; of rows that are no stream these functions leave everything as it is.
"""

import json
import zlib
from pathlib import Path
from typing import Any

import torch.distributed as dist
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader

from prefkit.data.sources.files import load_stream
from prefkit.data.sources.iterable import stream_of
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
    _same_everywhere(stream.first_rows(), "stream", "train")
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


def whole_stream(rows: Any, name: str) -> Any:
    """Rows to evaluate on: those of a stream, read to its end, so that they are always the same.

    Args:
        rows: of any kind; those that are no stream pass through.
        name: what messages call them.

    Raises:
        ConfigError: a stream without an end within `MOST` rows, or that the processes see in
            different orders.
    """
    stream = stream_of(rows, "train")
    if stream is None:
        return rows
    if isinstance(stream, StreamedRows):
        raise ConfigError(
            f"The {name} rows are a stream that was prepared to train on, without end. Give the "
            "datasets.IterableDataset itself."
        )
    found = load_stream(stream, name)
    text = json.dumps(found.items, default=repr, sort_keys=True)
    _same_everywhere(zlib.crc32(text.encode()), f"{name} stream", "evaluate")
    return found


def _same_everywhere(seen: Any, what: str, verb: str) -> None:
    """Compares what the processes see of a stream before it is shared out.

    Raises:
        ConfigError: they see different rows.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    everywhere: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, seen)
    if any(one != everywhere[0] for one in everywhere):
        raise ConfigError(
            f"The processes see the {what} in different orders, and would {verb} on some rows "
            "twice and on others never. Give its shuffle a seed: .shuffle(seed=42)."
        )
