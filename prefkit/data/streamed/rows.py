"""Rows of a stream (`datasets.IterableDataset`): read, checked and tokenised as they are needed.

A stream has no length and may have no end. `WINDOW` rows are in memory at a time: half of them are
used while a thread reads and tokenises the other half; the first batch needs no more than that. A
stream that ends begins again, as further epochs of it. Where it stands can be saved and gone back
to: rows before that place are read once more, but neither checked nor tokenised, so that what
follows is what would have followed, shuffle buffers of the user's included.
"""

import json
import logging
import math
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

import torch.utils.data

from prefkit.data.report import Incident
from prefkit.errors import ConfigError, PrefkitError

logger = logging.getLogger(__name__)
WINDOW = 64  # rows read ahead at most: two calls of the tokenizer
PASSED = object()  # stands for an item that a resumed run has trained on: it is never collated
THREAD = "prefkit-stream"  # the name of the thread that reads ahead
_END = object()
_T = TypeVar("_T")
# Rows with their numbers in the pass → tokenised items with those numbers, and what was left out.
Read = Callable[[Sequence[tuple[int, Any]]], tuple[list[tuple[int, Any]], list[Incident]]]


@dataclass(frozen=True)
class Place:
    """Where a stream stands.

    Attributes:
        passes: how often it has ended and begun again.
        rows: rows of this pass that are done with.
        of_row: items of the next row that are done with.
        listed: lines of the file of skipped rows that speak of rows before.
        skipped: how many of them were skipped; the others were cut.
        last: a checksum of the last row that is done with, or None.
    """

    passes: int = 0
    rows: int = 0
    of_row: int = 0
    listed: int = 0
    last: int | None = None
    skipped: int = 0


class StreamedRows(torch.utils.data.IterableDataset):
    """Items `(number, item)` of a stream, without end; `number` counts them from 0.

    Args:
        stream: a `datasets.IterableDataset`.
        read: checks and tokenises a few rows.
        longest: tokens that no sequence exceeds.
        skipped_file: JSON Lines file to which rows left out are added as they come, or None.
        chat_template: what messages are written with, where it is not the tokenizer's own.
        part: (process, processes): each reads other rows, every so many-th or, where the stream
            has as many shards for each, shards of its own. Rows are numbered in the whole stream,
            with shards of its own among those of the process.

    Raises:
        RowError, PrefkitError, ConfigError: when it is iterated: a bad row, where `read` raises
            it; a whole pass without an item; other rows than when the saved place was reached.
    """

    def __init__(
        self,
        stream: Any,
        read: Read,
        longest: int,
        skipped_file: Path | None = None,
        chat_template: str | None = None,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        self._whole = stream.with_format(None)  # plain Python values whatever format was set
        # As split_dataset_by_node does it; but rows dealt in turn keep their numbers so.
        sharded = has_own_shards(stream, part)
        self._part = _part_of(self._whole, *part) if sharded else self._whole
        self._first, self._step = (0, 1) if sharded else part
        self.read, self.longest, self.skipped_file = read, longest, skipped_file
        self.chat_template = chat_template
        self._epoch = int(getattr(stream, "epoch", 0))
        self._begin, self._passed = Place(), 0
        self._reached = self._begin
        self._ahead: deque[Place] = deque()  # the places after items that are not used yet
        self._left_out = 0

    def first_rows(self, count: int = 8) -> list[int]:
        """Checksums of the first rows, before they are shared out: the same in every process."""
        return [_checksum(row) for row in self._whole.take(count)]

    def go_to(self, state: Mapping[str, Any] | None = None, passed: int = 0) -> None:
        """Makes the next iteration begin at a place.

        Args:
            state: of `state`; None = the beginning.
            passed: `PASSED` items before, for a loader that drops them as trained on.
        """
        self._begin, self._passed = Place(**(state or {})), passed

    def use(self, count: int) -> None:
        """Says that the next `count` items have been used."""
        for _ in range(count):
            self._reached = self._ahead.popleft()

    def state(self) -> dict[str, Any]:
        """The place after the items that have been used, as plain values."""
        return asdict(self._reached)

    @property
    def skipped(self) -> int:
        """Rows of this process's part that were skipped before the place that is reached."""
        return self._reached.skipped

    def __iter__(self) -> Iterator[Any]:
        """Each iteration begins at the same place."""
        self._reached = self._begin
        self._ahead.clear()
        self._prepare_file()
        for _ in range(self._passed):
            yield PASSED
        place, number = self._begin, 0
        while True:
            before, begun = number, place.rows
            for item, after in self._one_pass(place):
                place = after
                if item is _END:
                    break
                self._ahead.append(after)
                yield number, item
                number += 1
            if number == before and not begun:
                raise PrefkitError(
                    f"The stream has ended without a usable row; {self._left_out} were left out. "
                    "Look at its first rows with `prefkit inspect`."
                )
            logger.warning("The stream has ended and begins again (pass %d).", place.passes + 1)

    def _one_pass(self, begin: Place) -> Iterator[tuple[Any, Place]]:
        """The items from a place to the end of its pass, each with the place after it; then `_END`
        with the beginning of the next pass, which counts the rows left out behind the last item.
        """
        noted = begin
        for sums, items, incidents in _one_ahead(self._windows_from(begin)):
            if begin.passes:  # its rows are in the file already
                incidents = []
            self._list(incidents)
            for row, group in groupby(items, key=itemgetter(0)):
                of_row = [item for _, item in group]
                done = (row - self._first) // self._step
                part = replace(_after(noted, incidents, row), rows=done, last=None)
                whole = _after(noted, incidents, row + 1)
                whole = replace(whole, rows=done + 1, of_row=0, last=sums[row])
                for count, item in enumerate(of_row, start=1):
                    if done > begin.rows or count > begin.of_row:
                        yield item, whole if count == len(of_row) else replace(part, of_row=count)
            noted = _after(noted, incidents)
        passes, listed, skipped = begin.passes + 1, noted.listed, noted.skipped
        yield _END, Place(passes=passes, listed=listed, skipped=skipped)

    def _windows_from(self, begin: Place) -> Iterator[tuple[dict[int, int], list[Any], list[Any]]]:
        """Checksums of some rows by their numbers, their items, and what is left out of them."""
        rows = self._rows_from(begin)
        while window := list(islice(rows, WINDOW // 2)):
            yield {index: _checksum(data) for index, data in window}, *self.read(window)

    def _rows_from(self, begin: Place) -> Iterator[tuple[int, Any]]:
        self._part.set_epoch(self._epoch + begin.passes)
        rows = islice(enumerate(self._part), self._first, None, self._step)
        passed = deque(islice(rows, begin.rows), maxlen=1)
        if begin.last is not None and (not passed or _checksum(passed[0][1]) != begin.last):
            raise ConfigError(
                f"The stream's row {self._first + (begin.rows - 1) * self._step} is another one "
                "than when the checkpoint was made, so the run cannot go on where it stood. Give "
                "the same stream, and a seed to its shuffle."
            )
        yield from rows

    def _prepare_file(self) -> None:
        """Leaves the lines that speak of rows before the place where the stream begins."""
        if self.skipped_file is None or not self.skipped_file.exists():
            return
        lines = self.skipped_file.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = "".join(lines[: self._begin.listed])
        if kept:
            self.skipped_file.write_text(kept, encoding="utf-8")
        else:
            self.skipped_file.unlink()

    def _list(self, incidents: Sequence[Incident]) -> None:
        """Adds to the file, and says so when the number of rows left out has doubled."""
        if not incidents:
            return
        if self.skipped_file is not None:
            lines = (json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in incidents)
            with self.skipped_file.open("a", encoding="utf-8") as file:
                file.writelines(lines)
        before, self._left_out = self._left_out, self._left_out + len(incidents)
        if self._left_out.bit_length() > before.bit_length():
            first = incidents[0]
            logger.warning(
                "%d rows of the stream skipped or cut so far, such as %s: row %d, %s: %s.%s",
                self._left_out,
                first.source,
                first.row,
                first.field,
                first.problem,
                f" Listed in {self.skipped_file}." if self.skipped_file else "",
            )


def _after(place: Place, incidents: Sequence[Incident], row: float = math.inf) -> Place:
    """The place with the incidents of rows before `row` counted in."""
    before = [one for one in incidents if one.row < row]
    skipped = sum(one.action == "skipped" for one in before)
    return replace(place, listed=place.listed + len(before), skipped=place.skipped + skipped)


def _one_ahead(items: Iterator[_T]) -> Iterator[_T]:
    """The items, each made in a thread while the one before is used; what it raises is raised when
    its turn comes. The thread ends with this iterator.
    """
    with ThreadPoolExecutor(1, thread_name_prefix=THREAD) as thread:
        coming = thread.submit(next, items, _END)
        while (item := coming.result()) is not _END:
            coming = thread.submit(next, items, _END)
            yield item  # type: ignore[misc]


def has_own_shards(stream: Any, part: tuple[int, int]) -> bool:
    """Whether a process reads shards of its own of a stream, and not every so many-th row.

    Args:
        stream: a `datasets.IterableDataset`.
        part: (process, processes).
    """
    return part[1] > 1 and stream.num_shards % part[1] == 0


def _part_of(stream: Any, process: int, processes: int) -> Any:
    from datasets.distributed import split_dataset_by_node

    return split_dataset_by_node(stream, rank=process, world_size=processes)


def _checksum(data: Any) -> int:
    return zlib.crc32(json.dumps(data, default=repr, sort_keys=True).encode())
