"""TRL's test files, from a checkout or a bare repository."""

import os
import subprocess
from pathlib import Path

VARIABLE = "PREFKIT_TRL_TESTS"
FILES = ("__init__.py", "conftest.py", "testing_utils.py", "test_dpo_trainer.py")


def given() -> str | None:
    """The repository that the variable names, `path` or `path@revision`; None without one."""
    return os.environ.get(VARIABLE) or None


def put_tests(repository: str, folder: Path) -> Path:
    """Writes the test files into `folder`/tests.

    Args:
        repository: `path` or `path@revision`; without a revision the files of a checkout as they
            are, or the HEAD of a bare repository.

    Returns:
        The file of the DPO trainer's tests.

    Raises:
        FileNotFoundError: the repository does not have them.
    """
    path, _, revision = repository.partition("@")
    target = folder / "tests"
    target.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        here = Path(path) / "tests" / name
        if here.exists() and not revision:
            text = here.read_text("utf-8")
        else:
            text = _of_revision(path, revision or "HEAD", f"tests/{name}")
        (target / name).write_text(text, "utf-8")
    return target / FILES[-1]


def _of_revision(path: str, revision: str, file: str) -> str:
    command = ["git", "-C", path, "show", f"{revision}:{file}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise FileNotFoundError(f"{path} has no {file} at {revision}: {done.stderr.strip()}")
    return done.stdout
