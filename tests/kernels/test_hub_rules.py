"""What the Hub asks of a kernel's sources: names of operators, imports, Python 3.9, card.

The rules are those of the `kernels` project's page on requirements and of its builder's static
check (`torch-ops-check`), written here anew.
"""

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

FOLDER = ROOT / "kernels"
PACKAGE = FOLDER / "torch-ext" / "prefkit_kernels"
SOURCES = sorted(PACKAGE.rglob("*.py"))
# Decorators that register something under an operator's name.
REGISTERING = {
    *("custom_op", "triton_op", "register_kernel", "register_fake"),
    *("register_vmap", "register_torch_dispatch"),
}
PREFIX = "add_op_namespace_prefix"


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 9))


def called(node: ast.AST) -> str:
    """The last part of a called function's name, "" for what is no call."""
    function = node.func if isinstance(node, ast.Call) else None
    return getattr(function, "attr", getattr(function, "id", ""))


def names_of_operators(tree: ast.Module) -> Iterator[ast.expr]:
    """What decorators register functions under."""
    for node in ast.walk(tree):
        for decorator in getattr(node, "decorator_list", []):
            if called(decorator) in REGISTERING and decorator.args:
                yield decorator.args[0]


# ---------------------------------------------------------------------------------------- operators


def test_every_operator_is_registered_under_the_builders_prefix() -> None:
    found = [name for path in SOURCES for name in names_of_operators(parsed(path))]
    assert len(found) == 5
    assert all(called(name) == PREFIX for name in found)
    literal = ast.parse('@torch.library.custom_op("mine::op")\ndef op(): ...')
    assert [called(name) for name in names_of_operators(literal)] == [""]  # what would be found


def test_the_prefix_is_neither_wrapped_nor_guarded() -> None:
    """The builder writes `_ops.py` anew: nobody else defines the function or catches its import."""
    for path in SOURCES:
        for node in ast.walk(parsed(path)):
            defined = isinstance(node, ast.FunctionDef) and node.name == PREFIX
            assert not defined or path.name == "_ops.py", path
            if isinstance(node, ast.ImportFrom) and node.module == "_ops":
                assert [(one.name, one.asname) for one in node.names] == [(PREFIX, None)], path
            guarded = isinstance(node, ast.Try) and "_ops" in ast.unparse(node)
            assert not guarded, path


def test_operators_follow_the_builders_own_file(tmp_path: Path) -> None:
    """With a `_ops.py` as the builder writes it, all operators are under that name, and work."""
    pytest.importorskip("kernels.load", reason="the package `kernels` is not installed")
    command = [sys.executable, FOLDER / "build_local.py", tmp_path]
    subprocess.run(command, check=True, capture_output=True)
    for variant in (tmp_path / "build").iterdir():
        name = json.loads((variant / "metadata.json").read_text())["id"]
        (variant / "_ops.py").write_text(
            "import torch\n\n"
            f"ops = torch.ops.of_the_builder{name}\n\n\n"
            f'def {PREFIX}(op_name):\n    return "of_the_builder{name}::" + op_name\n'
        )
    script = (
        "import sys, torch; from pathlib import Path; from kernels import get_local_kernel\n"
        f"module = get_local_kernel(Path({str(tmp_path)!r}))\n"
        "stats = module.token_stats(torch.randn(3, 4), torch.randn(7, 4), torch.arange(3))\n"
        "assert (stats.logp < 0).all()\n"
        "print(*sorted(x for x in torch._C._dispatch_get_all_op_names() if 'token_stats' in x))\n"
    )
    # Elsewhere, and without the checkout: the folder `kernels` would pass for the package.
    done = subprocess.run(
        [sys.executable, "-P", "-c", script], capture_output=True, text=True, cwd=tmp_path, env={}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    names = done.stdout.split()
    assert {name.split("::")[1] for name in names} == {"token_stats", "token_stats_backward"}
    assert all(name.startswith("of_the_builder_prefkit_kernels_") for name in names)


# ------------------------------------------------------------------------------- imports and Python


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_are_relative_or_of_torch_and_the_standard_library(path: Path) -> None:
    allowed = {*sys.stdlib_module_names, "torch", "triton"}
    for node in ast.walk(parsed(path)):
        names = []
        if isinstance(node, ast.Import):
            names = [one.name for one in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        assert {name.split(".")[0] for name in names} <= allowed


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_python_3_9_can_read_it(path: Path) -> None:
    assert unions_at_runtime(parsed(path)) == []  # the parser refuses newer grammar
    vermin = pytest.importorskip("vermin", reason="vermin is not installed")
    _, least = vermin.visit(path.read_text(encoding="utf-8")).minimum_versions()
    assert least <= (3, 9)


def unions_at_runtime(tree: ast.Module) -> list[str]:
    """`int | None` where it is computed: in annotations, too, unless all are left as text."""
    lazy = any(isinstance(x, ast.ImportFrom) and x.module == "__future__" for x in tree.body)
    annotations = [
        annotation
        for node in ast.walk(tree)
        for name in ("annotation", "returns")
        if lazy and (annotation := getattr(node, name, None)) is not None
    ]
    spared = {id(x) for annotation in annotations for x in ast.walk(annotation)}
    unions = [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr) and id(node) not in spared
    ]
    return [one for one in unions if re.search(r"\b(None|Tensor|int|float|str)\b", one)]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("def f(x: int | None): ...", True),
        ("from __future__ import annotations\ndef f(x: int | None): ...", False),
        ("from __future__ import annotations\nAlias = tuple[int | None]", True),
        ("isinstance(x, int | float)", True),
        ("mask = (a < 0) | (b < 0)", False),
    ],
)
def test_unions_are_noticed(line: str, found: bool) -> None:
    assert bool(unions_at_runtime(ast.parse(line))) == found


# ----------------------------------------------------------------------------------- card, settings


def test_the_configuration_names_a_repository() -> None:
    general = tomllib.loads((FOLDER / "build.toml").read_text(encoding="utf-8"))["general"]
    assert re.fullmatch(r"[\w-]+/[\w-]+", general["hub"]["repo-id"])
    assert (FOLDER / "torch-ext" / general["name"].replace("-", "_") / "__init__.py").is_file()


def test_the_card_fills_in() -> None:
    """With the names that the builder gives; what stands between --- is YAML with the library."""
    jinja2 = pytest.importorskip("jinja2", reason="jinja2 is not installed")
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    import prefkit_kernels

    text = (FOLDER / "CARD.md").read_text(encoding="utf-8")
    strict = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True)
    card = strict.from_string(text).render(
        repo_id="some/where",
        version=1,
        functions=prefkit_kernels.__all__,
        layers=None,
        has_benchmark=False,
        upstream=None,
        source=None,
        license="apache-2.0",
    )
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "kernels"
    assert yaml.safe_load(front)["license"] == "apache-2.0"
    assert 'get_kernel("some/where", version=1)' in body
    assert "`token_stats`" in body
    assert "{" not in re.sub(r"```.*?```", "", body, flags=re.S)
