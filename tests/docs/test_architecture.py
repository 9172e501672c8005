"""The modules import each other in no circle. (Which room may import which: `lint-imports`.)"""

import grimp
import pytest

# To be removed with the work on pairs.
KNOWN = [
    (
        "prefkit.pairs.pipelines.attempts",
        "prefkit.pairs.pipelines.context",
        "prefkit.pairs.pipelines.finding",
    )
]


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    """Every import of the two packages: at the top, within functions, and for types alone."""
    return grimp.build_graph("prefkit", "prefkit_kernels", cache_dir=None)


def circles(graph: grimp.ImportGraph) -> list[tuple[str, ...]]:
    """The modules that reach themselves, those of a circle together."""
    found = set()
    for module in graph.modules:
        after = graph.find_upstream_modules(module)
        if together := after & graph.find_downstream_modules(module):
            found.add(tuple(sorted({module, *together})))
    return sorted(found)


def test_no_modules_import_each_other_in_a_circle(graph: grimp.ImportGraph) -> None:
    assert circles(graph) == KNOWN
