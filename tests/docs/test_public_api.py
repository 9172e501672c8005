"""docs/public_api.txt is what the code promises: a change of it is a deliberate one."""

import difflib
import re
import tomllib
from pathlib import Path

from tests.docs.public_api import described, listing

ROOT = Path(__file__).parents[2]


def test_the_promise_is_what_is_written_down() -> None:
    """`python -m tests.docs.public_api > docs/public_api.txt` makes it; docs/stability.md says what
    a changed line asks for."""
    written = (ROOT / "docs" / "public_api.txt").read_text(encoding="utf-8").splitlines()
    found = listing().splitlines()
    changes = difflib.unified_diff(written, found, "written down", "found", lineterm="", n=0)
    assert found == written, "\n".join(changes)


def test_a_changed_name_default_or_annotation_shows() -> None:
    from prefkit_kernels import TokenStats, token_stats

    (line,) = described("x", token_stats)
    assert "detached: tuple[str, ...]=()" in line
    assert line.endswith("-> TokenStats")
    assert "x.kl: Tensor | None = None" in list(described("x", TokenStats))


def test_what_is_public_can_be_imported() -> None:
    """Every name of the first column, lazily loaded ones included."""
    from importlib import import_module

    for name in ("prefkit", "prefkit_kernels", "prefkit.data"):
        module = import_module(name)
        assert [public for public in module.__all__ if not hasattr(module, public)] == []


def test_the_versions_of_others_are_those_that_are_installed() -> None:
    """The table of docs/stability.md against pyproject.toml and constraints.txt."""
    page = (ROOT / "docs" / "stability.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (\w+)(?: \(optional\))? \| ([\d.]+) \|", page, re.M))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["triton"]]
    least = dict(re.match(r"([\w-]+)>=([\d.]+)", one).groups() for one in asked)  # type: ignore[union-attr]
    least["python"] = project["requires-python"].removeprefix(">=")
    assert {name.lower(): version for name, version in rows.items()} == {
        name: least[name] for name in ("python", "torch", "transformers", "triton")
    }
    pinned = dict(re.findall(r"^([\w-]+)==(.+)$", (ROOT / "constraints.txt").read_text(), re.M))
    for name in ("torch", "transformers", "triton"):
        assert f"| {least[name]} | {pinned[name]} |" in page


def test_what_functions_of_users_are_given_is_there() -> None:
    """The names of docs/stability.md."""
    from prefkit.loss.sides import Sides
    from prefkit.loss.weights.hooks import QUANTITIES
    from prefkit.model.head.transform import LogitTransform

    page = (ROOT / "docs" / "stability.md").read_text(encoding="utf-8")
    told = page[page.index("- **What functions") : page.index("- **Commands**")]
    named = re.search(r"which are (.*?) \(\[", told, re.S)
    assert named is not None
    assert set(re.findall(r"`(\w+)`", named[1])) == set(QUANTITIES)
    of_sides = re.findall(
        r"`(\w+)(?:\(\w+\))?`", re.split(r"of\s+`sides` its", told)[1].split(".")[0]
    )
    assert of_sides == ["sum", "mean", "spread", "is_chosen"]
    assert all(hasattr(Sides, name) for name in of_sides)
    transform = LogitTransform(logit_scale=0.5, softcap=3.0)
    assert transform.options == {"logit_scale": 0.5, "softcap": 3.0}


def test_one_version_is_written_in_three_places() -> None:
    import prefkit
    import prefkit_kernels

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert prefkit.__version__ == prefkit_kernels.__version__ == project["version"]
