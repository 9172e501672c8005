"""The folder `kernels/` as a Hugging Face Hub kernel, loaded beside the installed package."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

import prefkit_kernels
from tests.conftest import ROOT
from tests.kernels.kernel_cases import Case, build

# The folder of the same name in the repository would pass for `kernels` itself.
pytest.importorskip("kernels.load", reason="the package `kernels` is not installed")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BACKENDS = ["torch"]
try:
    import triton  # noqa: F401

    BACKENDS.append("triton")
except ImportError:
    pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("hub_kernel")
    subprocess.run([sys.executable, ROOT / "kernels" / "build_local.py", out], check=True)
    return out


@pytest.fixture(scope="module")
def loaded(folder: Path) -> ModuleType:
    from kernels import get_local_kernel

    return get_local_kernel(folder)


def _stats_and_gradients(module: ModuleType, backend: str, compiled: bool = False) -> list[Tensor]:
    problem = build(Case(near=0.05), torch.float32, DEVICE)
    arguments = {
        "ref_hidden": problem.ref_hidden,
        "ref_weight": problem.ref_weight,
        "outputs": ("logp", "ref_logp", "kl"),
        "backend": backend,
    }

    def loss(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        stats = module.token_stats(hidden * 2, weight, problem.targets, **arguments)
        return (stats.logp - 0.3 * stats.kl).sum(), torch.stack(stats[:3])

    if compiled:
        loss = torch.compile(loss, fullgraph=True, backend="aot_eager")
    total, stats = loss(problem.hidden, problem.weight)
    total.backward()
    return [stats.detach(), problem.hidden.grad, problem.weight.grad]


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_loaded_copy_gives_the_same_bits(loaded: ModuleType, backend: str) -> None:
    expected = _stats_and_gradients(prefkit_kernels, backend)
    found = _stats_and_gradients(loaded, backend)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


def test_the_loaded_copy_compiles_without_a_graph_break(loaded: ModuleType) -> None:
    expected = _stats_and_gradients(prefkit_kernels, "torch")
    found = _stats_and_gradients(loaded, "torch", compiled=True)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_the_loaded_copy_has_operators_of_its_own(loaded: ModuleType) -> None:
    assert Path(loaded.__file__).parent != Path(prefkit_kernels.__file__).parent
    name = loaded.__name__
    assert name.startswith("_prefkit_kernels_")
    ours, theirs = torch.ops.prefkit_kernels.token_stats, getattr(torch.ops, name).token_stats
    assert ours.default is not theirs.default
    own = [module for key, module in sys.modules.items() if key.startswith(f"{name}.")]
    assert f"{name}.token_stats.operator" in sys.modules
    for module in own:  # none of the installed package's
        assert Path(loaded.__file__).parent in Path(module.__file__).parents


def test_a_variant_is_every_file_of_the_package_in_its_folder(folder: Path) -> None:
    root = Path(prefkit_kernels.__file__).parent
    sources = {path.relative_to(root): path.read_bytes() for path in root.rglob("*.py")}
    assert any(len(path.parts) > 3 for path in sources)
    for variant in (folder / "build").iterdir():
        assert sources == {p.relative_to(variant): p.read_bytes() for p in variant.rglob("*.py")}


def test_the_name_of_a_variant_changes_with_any_file_of_any_folder(tmp_path: Path) -> None:
    """Two versions loaded in one process must not share the names of their operators."""

    def name_of(tree: Path, out: Path) -> str:
        command = [sys.executable, tree / "build_local.py", out]
        subprocess.run(command, check=True, capture_output=True)
        metadata = (out / "build" / "torch-cpu" / "metadata.json").read_text()
        return str(json.loads(metadata)["id"])

    tree = tmp_path / "kernels"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "kernels", tree, ignore=ignore)
    names = [name_of(tree, tmp_path / "0")]
    deepest = max(tree.rglob("*.py"), key=lambda path: len(path.parts))
    deepest.write_text(deepest.read_text() + "\n")
    names.append(name_of(tree, tmp_path / "1"))
    deepest.rename(deepest.with_name("renamed.py"))
    names.append(name_of(tree, tmp_path / "2"))
    assert len(set(names)) == 3


def test_the_builder_reads_its_configuration(folder: Path) -> None:
    """build.toml passes the parser of the Hub's builder and names the variants that are here."""
    from kernels._rust import Build

    backends = {str(backend).lower() for backend in Build.open(ROOT / "kernels").general.backends}
    variants = {path.name for path in (folder / "build").iterdir()}
    assert variants == {f"torch-{backend}" for backend in backends}
