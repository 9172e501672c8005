"""Where and with what a result was measured."""

import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path

import torch

_ROOT = Path(__file__).parents[1]
_PACKAGES = ("torch", "triton", "trl", "liger-kernel", "cut-cross-entropy", "transformers")


def facts(device: str) -> dict[str, str]:
    """Hardware, threads, versions and commit, in words."""
    found = {
        "hardware": hardware(device),
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()} processors",
        "python": platform.python_version(),
        "commit": commit(),
    }
    if device != "cpu":
        found["CUDA"] = str(torch.version.cuda or torch.version.hip)
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def write_page(path: Path, command: str, table: str) -> None:
    """Writes what was measured on a CPU as a Markdown page: where, by which command, the table."""
    where = ", ".join(f"{name} {value}" for name, value in facts("cpu").items())
    title = f"# {path.stem}\n\n{where}. Not measured on a GPU."
    path.write_text(f"{title}\n\n`{command}`\n\n{table}\n", encoding="utf-8")


def hardware(device: str) -> str:
    if device != "cpu":
        properties = torch.cuda.get_device_properties(0)
        return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    name = platform.processor() or platform.machine()
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return name
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return f"{model[1] if model else name}, {os.cpu_count()} processors"


def slug(device: str) -> str:
    """The device in a file's name: "cpu", "nvidia-h100-80gb-hbm3"."""
    if device == "cpu":
        return "cpu"
    return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(0).lower()).strip("-")


def commit() -> str:
    """Short hash, "dirty" where tracked files differ from it; "unknown" outside a checkout."""
    try:
        head = _git("rev-parse", "--short", "HEAD")
        changed = _git(
            "status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results"
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head}, dirty" if changed else head


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(_ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
