"""Files that are either the old one or all of the new one, whenever the process dies."""

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from prefkit.errors import ConfigError


def check_writable(folder: Path, option: str) -> None:
    """Makes a folder and sees that files can be made in it, before any compute is spent.

    Raises:
        ConfigError: it cannot; names `option`.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"{option}: {folder} cannot be written ({error.strerror or error}). Choose another "
            f"{option}."
        ) from error


def fsync_path(path: Path) -> None:
    """Forces a file or folder to the disk (folders: where the platform can)."""
    flags = os.O_RDONLY | (getattr(os, "O_DIRECTORY", 0) if path.is_dir() else 0)
    with contextlib.suppress(OSError):
        handle = os.open(path, flags)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def replace_file(temporary: Path, path: Path) -> None:
    """Moves a finished temporary file of the same folder into place, both safely on disk."""
    fsync_path(temporary)
    os.replace(temporary, path)
    fsync_path(path.parent)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text atomically."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    replace_file(temporary, path)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes JSON atomically."""
    write_text(path, json.dumps(content, indent=1, sort_keys=True) + "\n")
