"""docs/architecture.md names what exists, and the modules import each other in no circle.

Which room may import which is checked by `lint-imports`.
"""

import ast
import re
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
TREE = re.search(r"^```text\n(.*?)^```$", PAGE, re.M | re.S)[1]
STOPS = re.findall(r"`([\w/-]+\.py):([\w.]+)`", PAGE)


def rooms() -> list[str]:
    """The paths of the tree: a name is indented by two spaces more than its folder."""
    paths, above = [], [""]
    for line in TREE.splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        del above[depth + 1 :]
        paths.append(above[depth] + name)
        above.append(above[depth] + name)
    return paths


@pytest.mark.parametrize("path", rooms())
def test_every_room_of_the_tree_exists(path: str) -> None:
    assert (ROOT / path).is_dir() if path.endswith("/") else (ROOT / path).is_file()


def test_every_room_of_the_package_is_in_the_tree() -> None:
    packages = {f"{file.parent.relative_to(ROOT)}/" for file in ROOT.glob("prefkit/*/__init__.py")}
    assert packages <= set(rooms())


@pytest.mark.parametrize(("file", "name"), STOPS)
def test_every_stop_exists(file: str, name: str) -> None:
    body = ast.parse((ROOT / file).read_text(encoding="utf-8")).body
    for part in name.split("."):
        (found,) = [node for node in body if getattr(node, "name", None) == part]
        body = getattr(found, "body", [])


def test_each_walk_has_at_most_ten_stops_of_one_sentence() -> None:
    walks = [part for part in PAGE.split("\n## ") if part.startswith("One ")]
    assert len(walks) == 2
    for walk in walks:
        stops = re.split(r"^\d+\. ", walk, flags=re.M)[1:]
        assert 0 < len(stops) <= 10
        for stop in stops:
            said = re.sub(r"`[^`]*`", "", " ".join(stop.split()))
            assert said.endswith(".")
            assert said.count(". ") == 0, stop


@pytest.mark.parametrize("path", re.findall(r"`((?:prefkit|tests|benchmarks)/[\w/.]*)`", PAGE))
def test_every_path_exists(path: str) -> None:
    assert (ROOT / path).exists()


# ----------------------------------------------------------------------------------------- imports


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    """Every import of the two packages: at the top, within functions, and for types alone."""
    return grimp.build_graph("prefkit", "prefkit_kernels", cache_dir=None)


def circles(graph: grimp.ImportGraph) -> list[tuple[str, ...]]:
    """The modules that reach themselves, those of a circle together."""
    found = set()
    for module in graph.modules:
        below = graph.find_upstream_modules(module)
        if together := below & graph.find_downstream_modules(module):
            found.add(tuple(sorted({module, *together})))
    return sorted(found)


def test_no_modules_import_each_other_in_a_circle(graph: grimp.ImportGraph) -> None:
    assert circles(graph) == []
