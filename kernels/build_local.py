"""Lay this folder out as the Hub's builder does for a kernel of Python and Triton alone.

    python kernels/build_local.py OUT      # OUT/build/torch-cpu, torch-cuda, torch-rocm

Afterwards `kernels.get_local_kernel(Path("OUT"))` loads it, under a name of its own, beside an
installed `prefkit_kernels`. Only the standard library is needed.
"""

import argparse
import hashlib
import json
import shutil
import sys
import tomllib
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def build(out: Path) -> list[Path]:
    """Write one variant a backend of build.toml under `out`/build and return their folders.

    A variant is the package's files, in their folders, beside a metadata.json; its `id` becomes the
    module's name, and so the namespace of the operators. The id names the sources by their hash,
    paths included: two versions loaded in one process have two names.

    Raises:
        FileExistsError: a variant is there already.
    """
    general = tomllib.loads((HERE / "build.toml").read_text())["general"]
    package = general["name"].replace("-", "_")
    root = HERE / "torch-ext" / package
    sources = sorted(path.relative_to(root) for path in root.rglob("*.py"))
    digest = _digest(root, sources)
    variants = []
    for backend in general["backends"]:
        variant = out / "build" / f"torch-{backend}"
        variant.mkdir(parents=True)
        for path in sources:
            (variant / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / path, variant / path)
        metadata = _metadata(general, backend, f"_{package}_{backend}_{digest}")
        (variant / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")
        variants.append(variant)
    return variants


def _digest(root: Path, sources: list[Path]) -> str:
    """Seven hex digits of the files' names and contents."""
    found = hashlib.sha256()
    for path in sources:
        content = (root / path).read_bytes()
        found.update(f"{path.as_posix()} {len(content)}\n".encode() + content)
    return found.hexdigest()[:7]


def _metadata(general: dict[str, Any], backend: str, identifier: str) -> dict[str, Any]:
    return {
        "id": identifier,
        "name": general["name"],
        "version": general["version"],
        "license": general["license"],
        "python-depends": [],
        "backend": {"type": backend},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder to write build/ into")
    out = parser.parse_args().out
    if (out / "build").exists():
        sys.exit(f"{out / 'build'} is there already: remove it, or name another folder")
    for variant in build(out):
        print(variant)


if __name__ == "__main__":
    main()
