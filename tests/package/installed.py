"""The wheel in an environment that has nothing else, in an empty folder: what a newcomer does.

    python -m tests.package.installed dist          # make wheel-check

Makes an environment, installs torch and the wheel with the versions of constraints.txt, then runs
README's loop, `prefkit demo` and every command's help. Takes minutes, and downloads torch.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from prefkit.cli.main import COMMANDS

ROOT = Path(__file__).parents[2]


def check(wheel: Path, folder: Path) -> None:
    """Raises CalledProcessError at the first thing that fails."""
    environment, empty = folder / "env", folder / "empty"
    empty.mkdir()
    python = environment / "bin" / "python"

    def run(*command: object) -> None:
        print("+", *command, flush=True)
        # -I and the empty folder: nothing of the checkout can be found.
        subprocess.run([str(part) for part in command], check=True, cwd=empty)

    run(sys.executable, "-m", "venv", environment)
    install = (python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt")
    run(*install, "torch")
    run(*install, wheel)
    run(python, "-m", "pip", "check")
    for path in (ROOT / "tests" / "package" / "readme_loop.py", ROOT / "README.md"):
        shutil.copy(path, empty)
    run(python, "-I", "readme_loop.py", "README.md")
    prefkit = environment / "bin" / "prefkit"
    for command in COMMANDS:
        run(prefkit, command, "--help")
    run(prefkit, "demo", "--output_dir", empty / "demo")


def main() -> None:
    (wheel,) = Path(sys.argv[1]).resolve().glob("prefkit-*.whl")
    with tempfile.TemporaryDirectory() as folder:
        check(wheel, Path(folder))
    print("The wheel does in an empty environment what README says.")


if __name__ == "__main__":
    main()
