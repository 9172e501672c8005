"""Checkpoints that are either complete or recognisably not.

A process can die (kill -9, power) in the middle of a save. So the last thing written into a
checkpoint is a marker that lists every file with its size, after all of them have reached the disk.
A folder without the marker, or whose files do not match it, is never resumed from; it is named and
passed over.
"""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from prefkit.errors import ConfigError
from prefkit.files.atomic import fsync_path, write_json

MARKER = "prefkit_complete.json"
_FOLDER = re.compile(r"^checkpoint-(\d+)$")


def delete(folder: Path) -> None:
    """Deletes a checkpoint or what an interrupted save left of one, its marker first."""
    if folder.is_dir():
        (folder / MARKER).unlink(missing_ok=True)
        shutil.rmtree(folder)


def mark_complete(folder: Path) -> None:
    """Declares a checkpoint complete: all files to disk, then the marker that lists them."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MARKER)
    for path in files:
        fsync_path(path)
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    write_json(folder / MARKER, {"files": sizes})


def problem_with(folder: Path) -> str | None:
    """Why a checkpoint cannot be resumed from, or None when it is whole."""
    if not folder.is_dir():
        return "there is no such folder"
    try:
        sizes = json.loads((folder / MARKER).read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        return f"it has no {MARKER}: the save was cut off, or another program wrote it"
    except (ValueError, KeyError, OSError) as error:
        return f"its {MARKER} cannot be read ({error})"
    for name, size in sizes.items():
        path = folder / name
        if not path.is_file():
            return f"its file {name} is missing"
        if path.stat().st_size != size:
            return f"its file {name} has {path.stat().st_size} bytes instead of {size}"
    if "trainer_state.json" not in sizes:
        return "it has no trainer_state.json"
    if not any(Path(name).name.startswith("optimizer") for name in sizes) and not any(
        part.startswith(("global_step", "optimizer")) for name in sizes for part in Path(name).parts
    ):
        return "it holds the model only (save_only_model), so training cannot go on from it"
    return None


def list_checkpoints(output_dir: Path) -> list[Path]:
    """All checkpoint folders of a run, complete or not, the newest (highest step) first."""
    if not output_dir.is_dir():
        return []
    found = [(int(match[1]), path) for path in output_dir.iterdir() if (match := _matches(path))]
    return [path for _, path in sorted(found, reverse=True)]


def _matches(path: Path) -> re.Match[str] | None:
    return _FOLDER.match(path.name) if path.is_dir() else None


def newest_complete(output_dir: Path) -> tuple[Path | None, list[tuple[Path, str]]]:
    """The newest complete checkpoint (or None), and those passed over with the reason."""
    passed_over: list[tuple[Path, str]] = []
    for folder in list_checkpoints(output_dir):
        problem = problem_with(folder)
        if problem is None:
            return folder, passed_over
        passed_over.append((folder, problem))
    return None, passed_over


def newest_until(output_dir: Path, step: int) -> Path | None:
    """The newest complete checkpoint of at most so many optimiser steps."""
    early = (one for one in list_checkpoints(output_dir) if int(one.name.split("-")[1]) <= step)
    return next((folder for folder in early if problem_with(folder) is None), None)


def check_request(request: str | bool | None) -> None:
    """Refuses a folder that a run cannot go on from, where `resume_from_checkpoint` names one.

    Raises:
        ConfigError: it is missing or incomplete.
    """
    if isinstance(request, bool | None) or request.lower() in ("true", "false", "none", "", "auto"):
        return
    if (problem := problem_with(Path(request))) is not None:
        raise ConfigError(
            f"resume_from_checkpoint: cannot resume from {request}: {problem}. Use 'auto' to "
            "take the newest complete checkpoint of output_dir."
        )


def resolve_resume(
    request: str | bool | None, output_dir: Path, say: Callable[[str], None]
) -> str | None:
    """Turns `resume_from_checkpoint` into the folder to resume from.

    Args:
        request: None/False = start afresh; "auto" = newest complete checkpoint, or afresh when
            there is none; True (or "true") = newest complete checkpoint, an error when there is
            none; anything else = that folder.
        output_dir: where the run keeps its checkpoints.
        say: receives one line for each incomplete checkpoint passed over and for the choice made.

    Raises:
        ConfigError: nothing complete to resume from, or the named folder is incomplete.
    """
    if isinstance(request, str) and request.lower() in ("true", "false", "none", ""):
        request = request.lower() == "true"
    if not request:
        return None
    if request is not True and request != "auto":
        check_request(request)
        return str(request)
    chosen, passed_over = newest_complete(output_dir)
    for folder, problem in passed_over:
        say(f"Passing over {folder}: {problem}.")
    if chosen is not None:
        say(f"Resuming from {chosen}.")
        return str(chosen)
    if request is True:
        raise ConfigError(
            f"resume_from_checkpoint: there is no complete checkpoint in {output_dir}. Use 'auto' "
            "to start from the beginning when there is none."
        )
    say(f"No complete checkpoint in {output_dir}: starting from the beginning.")
    return None


def rotate(output_dir: Path, limit: int | None, keep: Path | None = None) -> None:
    """Deletes old checkpoints: the newest `limit` complete ones stay, and `keep`.

    Incomplete ones older than the newest complete one are leftovers and go as well. Nothing is
    deleted before something complete exists.
    """
    if limit is None or limit <= 0:
        return
    kept = 0
    for folder in list_checkpoints(output_dir):
        complete = problem_with(folder) is None or (folder / MARKER).is_file()
        if complete and kept < limit:
            kept += 1
        elif kept and (keep is None or folder.resolve() != keep.resolve()):
            delete(folder)


def save_atomically(save: Callable[[str], None], target: Path) -> None:
    """Runs `save(folder)` on a scratch folder and moves each file into `target` when all exist.

    Every file of `target` is so always a whole one; `config.json` and the tokenizer arrive first,
    the weights last.
    """
    scratch = target / ".saving"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    save(str(scratch))
    files = [path for path in scratch.rglob("*") if path.is_file()]
    for path in sorted(files, key=lambda path: (path.suffix == ".safetensors", path.name)):
        fsync_path(path)
        destination = target / path.relative_to(scratch)
        destination.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, destination)
    shutil.rmtree(scratch, ignore_errors=True)
    fsync_path(target)
