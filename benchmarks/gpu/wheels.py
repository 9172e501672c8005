"""The peers on a machine without a network: one folder of wheels, fetched here, installed there.

    python -m benchmarks.gpu.wheels            fills .gpu-wheels (`make gpu-wheels`)

Only what a machine with torch, transformers and the usual scientific packages lacks: TRL with the
packages that it imports, Liger and cut-cross-entropy. QuACK's compiler alone is 92 MB, beyond what
the folder may hold; where it is installed it is measured.
"""

import importlib.metadata
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.gpu.card import ROOT

FOLDER = ROOT / ".gpu-wheels"
MOST = 50_000_000  # bytes of the folder
PINS = (
    "trl==1.16.0",
    *("datasets==5.2.0", "dill==0.4.1", "multiprocess==0.70.19"),  # datasets is what TRL imports
    "liger-kernel==0.8.5",
    "cut-cross-entropy==25.1.1",
)
_PYTHON = "3.12"  # of the machine with the GPU
_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def fetch(folder: Path = FOLDER) -> int:
    """Fills the folder, and returns its bytes.

    Raises:
        SystemExit: a package is not to be had, or the folder is larger than it may be.
    """
    shutil.rmtree(folder, ignore_errors=True)  # two versions of one package stop an installation
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--implementation", "cp"]
    command += ["--python-version", _PYTHON, "--dest", str(folder)]
    for platform in _PLATFORMS:
        command += ["--platform", platform]
    if subprocess.run([*command, *PINS]).returncode:
        raise SystemExit("pip could not fetch every wheel; see above")
    size = sum(path.stat().st_size for path in folder.iterdir())
    if size > MOST:
        raise SystemExit(f"{folder} holds {size / 1e6:.1f} MB, more than {MOST / 1e6:.0f}")
    return size


def install(folder: Path, site: Path, timeout: float = 60.0) -> str:
    """Installs a folder's wheels into `site`, without a network; what cannot be is left out.

    Returns:
        In words, what came of it; the steps say themselves which peer they miss.
    """
    wheels = sorted(folder.glob("*.whl")) if folder.is_dir() else []
    if not wheels:
        return f"no wheels in {folder.name}: peers that are not installed are missing"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--upgrade"]
    command += ["--target", str(site)]

    def put(some: list[Path]) -> str | None:
        try:
            done = subprocess.run(
                [*command, *map(str, some)], capture_output=True, text=True, timeout=timeout
            )
        except subprocess.TimeoutExpired:
            return f"not installed within {timeout:.0f} s"
        return (done.stderr.strip().splitlines() or ["no message"])[-1] if done.returncode else None

    if put(wheels) is None:
        return f"{len(wheels)} wheels installed"
    # One of them stops all: the others are worth having.
    problems = {wheel.name.split("-")[0]: put([wheel]) for wheel in wheels}
    missing = [f"{name} ({problem})" for name, problem in problems.items() if problem]
    return f"{len(wheels) - len(missing)} wheels installed, not {', '.join(missing)}"


def versions(site: Path) -> dict[str, str]:
    """What lies in a folder of packages, by name."""
    found = importlib.metadata.distributions(path=[str(site)])
    return {one.name.replace("_", "-"): one.version for one in found}


if __name__ == "__main__":
    print(f"{FOLDER.name}: {fetch() / 1e6:.1f} MB, {len(PINS)} wheels")
