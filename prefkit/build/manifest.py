"""What a build was made of: options, versions, counts; and whether two builds are the same one.

`manifest.json` is written when a build begins, and again, with the counts, when it ends. A folder
that holds an unfinished build is taken up again only by the same questions, model and options.
"""

import dataclasses
import fcntl
import hashlib
import importlib.metadata
import json
import platform
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any

from prefkit.atomic import write_json
from prefkit.build.fields import BuildFields
from prefkit.build.questions import Questions
from prefkit.errors import ConfigError

MANIFEST = "manifest.json"
# They may differ from one run of a build to the next: what comes out stays the same (with another
# batch_size up to the rounding of what is still to be sampled).
FREE = (
    *("out", "questions", "model", "server", "concurrency", "timeout", "retries"),
    *("batch_size", "grading_workers", "judge_server", "join"),
)
_PACKAGES = ("torch", "transformers", "math-verify", "openai", "peft")
_END = 1 << 20  # bytes at either end of a file of weights that speak for all of it


class Manifest:
    """The manifest of one build's folder.

    Args:
        folder: the build's.
        method: of the build.
        options: resolved.
        questions: to be asked.

    Raises:
        ConfigError: the folder holds a build of something else, or one that is running now.
    """

    def __init__(
        self, folder: Path, method: str, options: BuildFields, questions: Questions
    ) -> None:
        self.path = folder / MANIFEST
        self._lock = _lock(folder)
        self.content: dict[str, Any] = {
            "method": method,
            "options": dataclasses.asdict(options),
            "questions": {
                "source": options.questions,
                "asked": len(questions),
                "repeated": questions.repeated,
                "sha256": _hash([[q.id, q.answer] for q in questions]),
            },
            "model": model_identity(options.model),
            "state": "running",
            "runs": [],
            "versions": _versions(),
        }
        self._take_up()

    @property
    def is_done(self) -> bool:
        """Whether an earlier run finished this very build."""
        return self.content["state"] == "done"

    def begin(self, engine: str) -> None:
        """Notes that a run begins, and what samples in it."""
        started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        self.content["runs"].append({"engine": engine, "started": started})
        self._began = time.monotonic()
        write_json(self.path, self.content)

    def end(self, outcomes: Iterable[dict[str, Any]], rows: int, **more: Any) -> None:
        """Writes the counts of every stage; the build is done."""
        counts: Counter[str] = Counter()
        drops: Counter[str] = Counter()
        for outcome in outcomes:
            counts.update(outcome["counts"])
            drops.update({name: n for name, n in outcome["drops"].items() if n})
        self.content["runs"][-1]["seconds"] = round(time.monotonic() - self._began, 1)
        self.content |= {
            "state": "done",
            "rows": rows,
            "counts": dict(sorted(counts.items())),
            "drops": dict(sorted(drops.items())),
            **more,
        }
        write_json(self.path, self.content)

    def close(self) -> None:
        """Lets another run have the folder."""
        self._lock.close()

    def _take_up(self) -> None:
        """Continues what an earlier run left, if it was the same build."""
        if not self.path.exists():
            if any(self.path.parent.glob("*.jsonl")):
                raise ConfigError(
                    f"out: {self.path.parent} holds files, but no {MANIFEST}. Choose another out."
                )
            return
        old = json.loads(self.path.read_text(encoding="utf-8"))
        for name in ("method", "questions", "model"):
            ours, theirs = self.content[name], old.get(name)
            if name == "questions":  # the same questions may lie in another place
                ours, theirs = ours["sha256"], (theirs or {}).get("sha256")
            if ours != theirs:
                raise ConfigError(
                    f"out: {self.path.parent} holds a build of another {name}. Choose another out."
                )
        for name, value in self.content["options"].items():
            was = old["options"].get(name)
            if name not in FREE and was != value:
                raise ConfigError(
                    f"out: {self.path.parent} holds a build with {name} {was!r}, now it is "
                    f"{value!r}. Give the same options to go on, or choose another out."
                )
        self.content["runs"], self.content["state"] = old["runs"], old["state"]
        if old["state"] == "done":
            self.content = old


def model_identity(model: str) -> str:
    """The name of a model; of a local folder, a hash of its configuration and of its weights' files
    (name, size, and what they begin and end with)."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return model
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix not in (".json", ".safetensors", ".bin", ".jinja", ".model"):
            continue
        digest.update(f"{path.name}:{path.stat().st_size}".encode())
        with open(path, "rb") as file:
            digest.update(file.read(_END))
            file.seek(max(0, path.stat().st_size - _END))
            digest.update(file.read())
    return f"sha256:{digest.hexdigest()[:32]}"


def _lock(folder: Path) -> IO[str]:
    """One build at a time in a folder; the lock goes when the process does."""
    file = open(folder / ".lock", "w")  # noqa: SIM115  (held for the length of the build)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise ConfigError(
            f"out: another build is writing to {folder} now. Wait for it, or choose another out."
        ) from error
    return file


def _hash(content: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _versions() -> dict[str, str]:
    from prefkit import __version__

    found = {"prefkit": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
