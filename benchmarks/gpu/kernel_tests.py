"""The kernels' own tests, which a GPU runs compiled; a rehearsal runs a few of them, interpreted.

python -m benchmarks.gpu.kernel_tests rows rows_triton
"""

import argparse
import os
import re
import subprocess
import sys
from importlib.util import find_spec

from benchmarks.gpu.card import ROOT
from benchmarks.gpu.telling import rehearsing, row

# Compiling takes most of the time; more processes than these would only fill the GPU's memory.
WORKERS = max(1, min(16, os.cpu_count() or 1))
_FEW = "strided"  # in the names of the tests of a rehearsal


def command(names: list[str]) -> list[str]:
    """pytest on the files of these names.

    Raises:
        FileNotFoundError: there is no such file: a step that ran fewer tests would pass unseen.
    """
    files = [ROOT / "tests" / "kernels" / f"test_{name}.py" for name in names]
    if missing := [path for path in files if not path.exists()]:
        raise FileNotFoundError(f"no {missing[0]}")
    found = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--tb", "short"]
    found += ["-p", "benchmarks.gpu.failing"]
    if find_spec("xdist") is not None:
        found += ["-n", "0" if rehearsing() else str(WORKERS)]
    if rehearsing():
        found += ["-k", _FEW]
    return [*found, *map(str, files)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="+", help="of tests/kernels/test_NAME.py")
    options = parser.parse_args()
    running = subprocess.Popen(
        command(options.names),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert running.stdout is not None, "a pipe was asked for"
    last = ""
    for line in running.stdout:
        print(line, end="", flush=True)
        last = line.strip() if re.search(r"\d+ (passed|failed|error)", line) else last
    row("Tests", outcome=last.strip("= ") or "no test ran")
    raise SystemExit(running.wait())


if __name__ == "__main__":
    main()
