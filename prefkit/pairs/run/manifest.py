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
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from prefkit.errors import ConfigError
from prefkit.files.atomic import write_json
from prefkit.pairs.engines.server.finding import public_url
from prefkit.pairs.fields import BuildFields
from prefkit.pairs.questions import Questions
from prefkit.pairs.run.options import FREE, used_by

MANIFEST = "manifest.json"
_PACKAGES = ("torch", "transformers", "math-verify", "openai", "peft")
_SAMPLES, _SAMPLE = 64, 1 << 16  # positions in a file of weights, and bytes at each
LOCK = ".lock"
_OTHER = {
    "method": "another method",
    "questions": "other questions (or another max_questions)",
    "model": "another model",
}


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
        self.path, self.method = folder / MANIFEST, method
        old = _read(self.path)
        self._lock = _lock(folder)
        self.content: dict[str, Any] = {
            "method": method,
            "options": _shown(options),
            "questions": {
                "source": options.questions,
                "asked": len(questions),
                "repeated": questions.repeated,
                "ignored": list(questions.ignored),
                "sha256": _hash([[q.id, q.answer] for q in questions]),
            },
            "model": model_identity(options.model),
            "state": "running",
            "runs": [],
            "versions": _versions(),
        }
        if old is not None:
            self._take_up(old)

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

    def note(self, role: str, notes: Mapping[str, int]) -> None:
        """Adds what an engine counted in this run ("requests shortened to the context": 3)."""
        if notes:
            self.content["runs"][-1].setdefault("notes", {})[role] = dict(notes)
            write_json(self.path, self.content)

    def end(
        self,
        outcomes: Iterable[dict[str, Any]],
        rows: int,
        further_drops: Mapping[str, int],
        **more: Any,
    ) -> None:
        """Writes the counts of every stage; the build is done."""
        counts: Counter[str] = Counter()
        drops: Counter[str] = Counter(further_drops)
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

    def _take_up(self, old: dict[str, Any]) -> None:
        """Continues what an earlier run left, if it was the same build; an option that its version
        did not have was at its default."""
        for name in ("method", "questions", "model"):
            ours, theirs = self.content[name], old.get(name)
            if name == "questions":  # the same questions may come from another file
                ours, theirs = ours["sha256"], (theirs or {}).get("sha256")
            if ours != theirs:
                raise ConfigError(
                    f"out: {self.path.parent} holds a build of {_OTHER[name]}. Choose another out."
                )
        for name, value in self.content["options"].items():
            was = old["options"].get(name, getattr(BuildFields, name, None))
            if name not in FREE and used_by(name, self.method) and was != value:
                raise ConfigError(
                    f"out: {self.path.parent} holds a build with {name} {was!r}, now it is "
                    f"{value!r}. Give the same options to go on, or choose another out."
                )
        self.content["runs"], self.content["state"] = old["runs"], old["state"]
        if old["state"] == "done":
            self.content = old


def _shown(options: BuildFields) -> dict[str, Any]:
    """Options as the manifest tells them: no passwords of URLs, of extra fields only the names."""
    shown = dataclasses.asdict(options)
    for name in ("server", "judge_server"):
        if shown[name]:
            shown[name] = public_url(shown[name])
    extra = shown["extra_body"]
    if extra:
        digest = _hash([extra])[:16]
        shown["extra_body"] = {"fields": sorted(extra), "sha256": digest}
    return shown


def _read(path: Path) -> dict[str, Any] | None:
    """The manifest that lies in a folder, None where the folder is empty.

    Raises:
        ConfigError: the folder holds something that is no build.
    """
    folder, remedy = path.parent, "Choose another out."
    if not path.exists():
        if any(entry.name != LOCK for entry in folder.iterdir()):
            raise ConfigError(f"out: {folder} holds files, but no {MANIFEST}. {remedy}")
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ConfigError(f"out: {path} cannot be read ({error}). {remedy}") from error
    if not isinstance(found, dict) or not {"method", "options", "runs", "state"} <= set(found):
        raise ConfigError(f"out: {path} is no manifest of a build. {remedy}")
    return found


def model_identity(model: str) -> str:
    """The name of a model; of a local folder, a hash of its small files and of its weights' sizes
    and 64 samples of each: fine-tuned weights differ in every one of them but where frozen."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return model
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix not in (".json", ".safetensors", ".bin", ".jinja", ".model"):
            continue
        digest.update(f"{path.name}:{path.stat().st_size}".encode())
        with open(path, "rb") as file:
            size = path.stat().st_size
            for index in range(_SAMPLES if size > _SAMPLES * _SAMPLE else 1):
                file.seek(index * (size - _SAMPLE) // (_SAMPLES - 1) if index else 0)
                digest.update(file.read(_SAMPLE if size > _SAMPLES * _SAMPLE else -1))
    return f"sha256:{digest.hexdigest()[:32]}"


def _lock(folder: Path) -> IO[str]:
    """One build at a time in a folder; the lock goes when the process does."""
    file = open(folder / LOCK, "w")  # noqa: SIM115  (held for the length of the build)
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
    from prefkit.version import VERSION

    found = {"prefkit": VERSION, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
