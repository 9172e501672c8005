"""The folder `kernels/` as a Hugging Face Hub kernel, loaded beside the installed package."""

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
    assert f"{name}.ops" in sys.modules
    for module in own:  # none of the installed package's
        assert Path(module.__file__).parent == Path(loaded.__file__).parent


def test_the_builder_reads_its_configuration(folder: Path) -> None:
    """build.toml passes the parser of the Hub's builder and names the variants that are here."""
    from kernels._rust import Build

    backends = {str(backend).lower() for backend in Build.open(ROOT / "kernels").general.backends}
    variants = {path.name for path in (folder / "build").iterdir()}
    assert variants == {f"torch-{backend}" for backend in backends}
