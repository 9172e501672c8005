"""The 70B recipes: each fits by torch's own FSDP memory tracker, which the plan comes close to."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prefkit.cli.plan import plan_arguments
from prefkit.plan.costs.exact import exact_memory
from prefkit.plan.inputs.shape import load_config
from prefkit.plan.planning import Plan

RECIPES = Path(__file__).parents[2] / "examples" / "70b"
MODELS = ("llama-3-70b", "qwen2.5-72b")
METHODS = ("step-dpo", "tdpo2")
KINDS = {"full": 64, "lora": 8}
DEPTHS = (3, 5)  # continued to 80 layers in a straight line, which one recipe is checked against


def plan_recipe(model: str, method: str, kind: str, *more: str) -> tuple[Any, Plan]:
    """The plan of a recipe for a 32,000-token pair in each row."""
    file = RECIPES / model / "config.json"
    own = {
        "lengths": "16000,8000,8000",
        "gpu_memory": "80GB",
        "accelerate_config": str(RECIPES / "accelerate" / f"fsdp2-{KINDS[kind]}gpu.yaml"),
    }
    recipe = str(RECIPES / model / f"{method}-{kind}.yaml")
    plan, _ = plan_arguments(own, [recipe, "--model", str(file), *more])
    return load_config(str(file)), plan


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", MODELS)
def test_recipe_fits_by_torchs_tracker(model: str, method: str, kind: str) -> None:
    config, plan = plan_recipe(model, method, kind)
    assert plan.fits
    assert plan.setting.sharding == "fsdp2"
    assert plan.setting.gpus == KINDS[kind]
    assert plan.heaviest.tokens == 32000
    exact = exact_memory(config, plan.shape, plan.setting, plan.heaviest, DEPTHS)
    ours, torchs = plan.memory.peak.total / 1e9, exact.peak / 1e9
    print(f"\n{model} {method} {kind}: plan {ours:.1f} GB, tracker {torchs:.1f} GB")
    assert exact.peak * 1.05 < plan.room
    assert plan.memory.peak.total == pytest.approx(exact.peak, rel=0.1)


def test_depth_is_a_straight_line() -> None:
    config, plan = plan_recipe("llama-3-70b", "step-dpo", "lora")
    shape = replace(plan.shape, layers=12)
    run = config, shape, plan.setting, plan.heaviest
    line, whole = exact_memory(*run, DEPTHS), exact_memory(*run)
    assert line.extrapolated
    assert not whole.extrapolated
    assert line.peak == pytest.approx(whole.peak, rel=0.01)


def test_without_offload_a_recipe_does_not_fit_and_is_told_what_would(tmp_path: Path) -> None:
    file = RECIPES / "accelerate" / "fsdp2-64gpu.yaml"
    text = file.read_text(encoding="utf-8")
    other = tmp_path / "on_the_gpu.yaml"
    name = "fsdp_activation_checkpointing_offload"
    other.write_text(text.replace(f"{name}: true", f"{name}: false"), encoding="utf-8")
    own = {
        "lengths": "16000,8000,8000",
        "gpu_memory": "80GB",
        "accelerate_config": str(other),
    }
    folder = RECIPES / "llama-3-70b"
    words = [str(folder / "step-dpo-full.yaml"), "--model", str(folder / "config.json")]
    plan, _ = plan_arguments(own, words)
    assert not plan.fits
    offload = next(advice for advice in plan.advice if name in advice.change)
    assert offload.fits
    # 80 inputs of a layer: 32,000 tokens of width 8192 in bf16
    assert offload.saves == pytest.approx(80 * 32000 * 8192 * 2, rel=0.1)
    config = load_config(str(folder / "config.json"))
    exact = exact_memory(config, plan.shape, plan.setting, plan.heaviest, DEPTHS)
    assert plan.memory.peak.total == pytest.approx(exact.peak, rel=0.1)
