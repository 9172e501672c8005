"""Builds of parts of the questions, joined to one build of all of them.

A shard's `questions.jsonl` says what became of each of its questions. Joined, they are the journal
of the whole build, which then has nothing left to sample.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from prefkit.build.driver import QUESTIONS
from prefkit.build.journal import Journal, read_lines
from prefkit.build.manifest import FREE, MANIFEST, Manifest
from prefkit.errors import ConfigError

_OF_SHARDS = (*FREE, "shard", "max_questions")


def join(folder: Path, manifest: Manifest, shards: Sequence[str]) -> int:
    """Takes over the finished questions of other builds.

    Args:
        folder: of the whole build.
        manifest: of the whole build.
        shards: folders of the parts.

    Returns:
        How many questions were taken over; those already here count no more.

    Raises:
        ConfigError: a folder that holds no build, or one of other options or of another model.
    """
    known = {line["id"] for line in read_lines(folder / QUESTIONS)}
    taken = 0
    for shard in map(Path, shards):
        _check_same(shard, manifest)
        lines = [line for line in read_lines(shard / QUESTIONS) if line["id"] not in known]
        known.update(line["id"] for line in lines)
        journal = Journal(folder / QUESTIONS)
        journal.append(lines)
        journal.close()
        taken += len(lines)
    return taken


def _check_same(shard: Path, manifest: Manifest) -> None:
    try:
        other = json.loads((shard / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"join: {shard} holds no build ({MANIFEST} is missing).") from error
    for name in ("method", "model"):
        if other[name] != manifest.content[name]:
            raise ConfigError(f"join: {shard} is a build of another {name}.")
    for name, value in manifest.content["options"].items():
        if name not in _OF_SHARDS and other["options"].get(name) != value:
            raise ConfigError(
                f"join: {shard} was built with {name} {other['options'].get(name)!r}, here it is "
                f"{value!r}. Join builds of the same options."
            )


def missing(folder: Path, names: Sequence[str]) -> int:
    """How many of these questions have no outcome yet (and need a model)."""
    return len(set(names) - {line["id"] for line in read_lines(folder / QUESTIONS)})
