"""Builds of parts of the questions, joined to one build of all of them.

A shard's `questions.jsonl` says what became of each of its questions. Joined, they are the journal
of the whole build, which then has nothing left to sample.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from prefkit.errors import ConfigError
from prefkit.files.journal import Journal, read_lines
from prefkit.pairs.fields import BuildFields
from prefkit.pairs.run.driver import QUESTIONS
from prefkit.pairs.run.manifest import MANIFEST, Manifest
from prefkit.pairs.run.options import FREE, used_by

_OF_SHARDS = (*FREE, "shard", "max_questions")


def join(folder: Path, manifest: Manifest, shards: Sequence[str], questions: Sequence[str]) -> None:
    """Takes over the finished questions of other builds; all is checked before a line is written.

    Args:
        folder: of the whole build.
        manifest: of the whole build.
        shards: folders of the parts.
        questions: ids of all questions of the whole build.

    Raises:
        ConfigError: a folder named twice, one that holds no build, a build of other options or of
            another model, or questions that no shard has finished.
    """
    if len({Path(shard).resolve() for shard in shards}) < len(shards):
        raise ConfigError("join names a folder twice. Name each shard once.")
    found = {line["id"]: line for line in read_lines(folder / QUESTIONS)}
    here = set(found)
    for shard in map(Path, shards):
        _check_same(shard, manifest)
        for line in read_lines(shard / QUESTIONS):
            found.setdefault(line["id"], line)
    if left := len(set(questions) - set(found)):
        raise ConfigError(
            f"join: {left} of {len(questions)} questions are in none of the shards. Finish them "
            "all, and name them all."
        )
    manifest.begin(f"none: joined from {len(shards)} shards")
    journal = Journal(folder / QUESTIONS)
    journal.append([found[name] for name in questions if name not in here])
    journal.close()


def _check_same(shard: Path, manifest: Manifest) -> None:
    try:
        other = json.loads((shard / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"join: {shard} holds no build ({MANIFEST} is missing).") from error
    for name in ("method", "model"):
        if other[name] != manifest.content[name]:
            raise ConfigError(f"join: {shard} is a build of another {name}.")
    for name, value in manifest.content["options"].items():
        was = other["options"].get(name, getattr(BuildFields, name, None))
        if name not in _OF_SHARDS and used_by(name, manifest.method) and was != value:
            raise ConfigError(
                f"join: {shard} was built with {name} {was!r}, here it is {value!r}. Join builds "
                "of the same options."
            )


def missing(folder: Path, names: Sequence[str]) -> int:
    """How many of these questions have no outcome yet (and need a model)."""
    return len(set(names) - {line["id"] for line in read_lines(folder / QUESTIONS)})
