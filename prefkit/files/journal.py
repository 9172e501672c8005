"""Append-only files of JSON lines that survive a kill at any moment.

A line is appended whole; a line torn by a crash is cut off when the file is opened again. What has
a line is done and is never done again. Lines are handed to the system at once, which a killed
process cannot undo, and forced to the disk every second, which bounds what a power cut takes.
"""

import json
import os
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from prefkit.errors import PrefkitError

_FORCE = 1.0  # seconds between two writes that are waited for


class Journal:
    """One append-only file of JSON objects; safe to append to from threads.

    Args:
        path: the file; made where it is missing, mended where its last line is torn.

    Raises:
        PrefkitError: a line that is not the last one is no JSON object: the file was edited.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock, self._forced = threading.Lock(), 0.0
        _mend(path)
        self._file = open(path, "ab")  # noqa: SIM115  (kept open for the length of the work)

    def append(self, entries: Iterable[dict[str, Any]]) -> None:
        """Appends entries; a kill of this process cannot take them back."""
        data = b"".join(json.dumps(e, ensure_ascii=False).encode() + b"\n" for e in entries)
        if not data:
            return
        with self._lock:
            self._file.write(data)
            self._file.flush()
            if time.monotonic() - self._forced > _FORCE:
                os.fsync(self._file.fileno())
                self._forced = time.monotonic()

    def close(self) -> None:
        """Forces what is left to the disk; safe while threads still append."""
        with self._lock:
            if not self._file.closed:
                os.fsync(self._file.fileno())
                self._file.close()


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The entries of a journal, oldest first; nothing where there is no file.

    Raises:
        PrefkitError: a line is no JSON object.
    """
    if not path.exists():
        return
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return  # torn by a crash while another process reads
            try:
                entry = json.loads(line)
            except ValueError:
                entry = None
            if not isinstance(entry, dict):
                raise PrefkitError(
                    f"{path}: line {number} is no JSON object. The file belongs to unfinished "
                    "work: restore it, or begin again with another folder or file."
                )
            yield entry


def _mend(path: Path) -> None:
    """Cuts off what a crash left after the last line break."""
    if not path.exists() or not (size := path.stat().st_size):
        return
    with open(path, "rb+") as file:
        end = size
        while end:  # from behind, in pieces: the file may be large
            start = max(0, end - 65536)
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
            if found >= 0:
                end = start + found + 1
                break
            end = start
        if end != size:
            file.truncate(end)
            os.fsync(file.fileno())
