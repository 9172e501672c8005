"""The fused head under FSDP2: two ranks give the loss and the gradients of one process."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from prefkit.errors import ModelError
from prefkit.model.fsdp_units import unit_of
from prefkit.model.head.fused import install
from prefkit.model.reference.policy import Reference
from tests.model.fsdp2_cases import LAYOUTS, WORLD, Layout, batch
from tests.model.fsdp2_work import work
from tests.train.trainer_cases import tiny_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the two processes found, by case."""
    folder = tmp_path_factory.mktemp("fsdp2")
    spawn(work, (str(folder),), nprocs=WORLD)
    return json.loads(Path(folder, "results.json").read_text())


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_gradients_are_those_of_the_whole_batch(layout: Layout, results: dict[str, Any]) -> None:
    found = results[str(layout)]
    assert found["loss"] == pytest.approx(found["want"], rel=1e-6)
    assert found["largest"] < 2e-6  # of the largest gradient of the same parameter; fp32 rounding
    assert found["views"] == 0  # FSDP2 warns of a head that returns a view


@pytest.mark.parametrize("place", ["own", "root", "tail"])
def test_bf16_parameters_with_fp32_reduction(place: str, results: dict[str, Any]) -> None:
    found = results[f"bf16-{place}"]
    assert found["loss"] == pytest.approx(found["want"], rel=2**-8)  # one unit of bf16
    assert found["relative_norm"] < 2**-7


def test_reference_is_the_sharded_policy_without_its_adapter(results: dict[str, Any]) -> None:
    assert results["adapter"]["largest"] < 2e-6


@pytest.mark.parametrize(
    ("place", "group"),
    [
        ("own", ["lm_head.weight"]),
        ("tail", ["model.norm.weight", "lm_head.weight"]),
        ("root", ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]),
    ],
)
def test_only_the_reference_head_outlives_its_forward(
    place: str, group: list[str], results: dict[str, Any]
) -> None:
    found = results[f"memory-{place}"]
    assert found["unheld"] == 0  # bytes: without `Reference`, FSDP2 frees what the loss will read
    assert found["right"]
    assert found["after_operands"] == group
    assert found["after_logp"] == []


def test_install_after_sharding_proves_and_leaves_shards(results: dict[str, Any]) -> None:
    found = results["late"]
    assert found["softcap"] == 3.0
    assert found["shards"]
    assert found["logp"] == pytest.approx(found["want"], rel=1e-6)


def test_a_dtensor_is_refused_and_the_named_remedy_is_exact(results: dict[str, Any]) -> None:
    found = results["by hand"]
    assert found["token_stats"].startswith("TypeError: weight is a DTensor")
    assert "full_tensor(grad_placements=[Partial('avg')])" in found["token_stats"]
    assert found["error"] < 1e-6
    assert found["install"].startswith("ModelError: LlamaForCausalLM")
    assert "fully_shard" in found["install"]


def test_a_head_that_something_else_freed_is_refused() -> None:
    """As under the first FSDP: the memory is gone, and nobody can be asked to keep it."""
    model = tiny_model()
    head = install(model)
    assert unit_of(model, head.module) is None
    inputs, rows, _, _ = batch([0])

    def free(module: nn.Module, *_: Any) -> None:
        weight: Tensor = module.weight  # type: ignore[assignment]
        weight.untyped_storage().resize_(0)

    head.module.register_forward_hook(free)
    with pytest.raises(ModelError, match="freed"):
        Reference(model, head).operands(inputs, rows, head.transform, head.vocab_size)
    assert torch.is_grad_enabled()
