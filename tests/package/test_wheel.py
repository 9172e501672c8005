"""The wheel: what is in it and what is not, and that its types are seen."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow
PACKAGES = {
    "prefkit": ROOT / "prefkit",
    "prefkit_kernels": ROOT / "kernels/torch-ext/prefkit_kernels",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built of a copy: setuptools writes beside the sources."""
    pytest.importorskip("setuptools", "77", reason="setuptools 77 or newer builds the wheel")
    copy, out = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("wheel")
    skipped = shutil.ignore_patterns("__pycache__")
    for name in ("prefkit", "kernels", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=skipped)
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*command, "--wheel-dir", out, copy], capture_output=True, text=True, cwd=out
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (found,) = out.glob("prefkit-*.whl")
    return found


def test_everything_that_runs_is_in_it_and_nothing_else(wheel: Path) -> None:
    names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    expected = [
        f"{package}/{path.relative_to(root).as_posix()}"
        for package, root in PACKAGES.items()
        for path in root.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    assert sorted(names) == sorted(expected)
    assert {"prefkit/py.typed", "prefkit_kernels/py.typed"} <= set(names)
    assert "prefkit/demo/assets/model/model.safetensors" in names


def test_its_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (path,) = [name for name in archive.namelist() if name.endswith("/METADATA")]
        text = archive.read(path).decode()
        entry_points = archive.read(path.replace("METADATA", "entry_points.txt")).decode()
    assert "License-Expression: Apache-2.0" in text
    assert "Requires-Python: >=3.11" in text
    assert "Classifier: Typing :: Typed" in text
    assert "prefkit = prefkit.cli.main:main" in entry_points
    assert "# prefkit\n" in text  # the README


def test_a_strict_type_checker_reads_it(wheel: Path, request: pytest.FixtureRequest) -> None:
    """Installed, not as the sources: names that load lazily, results, and mistakes that are one."""
    pytest.importorskip("mypy", reason="mypy is not installed")
    user = ROOT / "tests" / "package" / "user_types.py"
    target = wheel.parent / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    lines = user.read_text("utf-8").splitlines()
    wanted = {k for k, line in enumerate(lines, 1) if line.endswith("# error")}
    environment = wheel.parent / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "here.pth").write_text(f"{target}\n{Path(pytest.__file__).parents[1]}\n")
    command = [
        *(sys.executable, "-m", "mypy", "--strict", "--config-file", ""),
        *("--python-executable", environment / "bin" / "python"),
        *("--cache-dir", request.config.cache.mkdir("mypy"), user),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=wheel.parent)
    found = re.findall(r"user_types\.py:(\d+): error", done.stdout)
    assert {int(line) for line in found} == wanted, done.stdout + done.stderr
