"""Whole runs are TRL's: every number of every log line, and the weights at the end."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.integrations.trl.cases import (
    QUIET,
    check_logs,
    datasets,
    moved,
    ours,
    theirs,
    trainer,
    trl,
)
from tests.train.trainer_cases import ROWS, byte_tokenizer, run_options, save_model, tiny_model

peft = pytest.importorskip("peft", reason="PEFT is not installed")
STEPS: dict[str, Any] = {"max_steps": 3}


def lora(**changes: Any) -> Any:
    options = {"r": 4, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}
    return peft.LoraConfig(**{**options, **changes})


def runs(folder: Path, make: Any = None, **options: Any) -> tuple[Any, Any]:
    """A run of ours and one of theirs. `make`: the arguments that are not shared."""
    made = []
    for kind in (ours(), theirs()):
        own = make() if make else {"ref_model": moved()}
        made.append(trainer(kind, folder, **own, **{**STEPS, **options}))
        made[-1].train()
    assert made[0].prefkit_fallback is None
    return made[0], made[1]


def check_weights(got: Any, want: Any) -> None:
    for mine, other in zip(got.model.parameters(), want.model.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-3, atol=3e-4)


def check(got: Any, want: Any) -> None:
    check_logs(got, want)
    check_weights(got, want)


def test_accumulation_and_a_last_batch_that_is_smaller(tmp_path: Path) -> None:
    """24 rows by 5: four batches of 5 and one of 4 an epoch, two of them a step."""
    options = {"per_device_train_batch_size": 5, "gradient_accumulation_steps": 2}
    check(*runs(tmp_path, **options, max_steps=-1, num_train_epochs=1))


def test_evaluation(tmp_path: Path) -> None:
    options = {"eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 4}
    got, want = runs(tmp_path, lambda: {"ref_model": moved(), "eval_dataset": ROWS[:10]}, **options)
    check(got, want)
    mine, other = (
        [line for line in run.state.log_history if "eval_loss" in line] for run in (got, want)
    )
    skipped = {"eval_runtime", "eval_samples_per_second", "eval_steps_per_second"}
    for line, expected in zip(mine, other, strict=True):
        assert line.keys() == expected.keys()
        for name in expected.keys() - skipped:
            assert line[name] == pytest.approx(expected[name], rel=3e-4, abs=1e-4), name


def test_lora_whose_reference_is_the_model_without_it(tmp_path: Path) -> None:
    """Its adapter changes the model from the start: no log-ratio is 0."""
    torch.manual_seed(0)
    check(*runs(tmp_path, lambda: {"peft_config": lora()}, seed=3))


def test_an_adapter_from_before_keeps_a_copy_as_reference(tmp_path: Path) -> None:
    def make() -> dict[str, Any]:
        model = tiny_model(scale=3.0)
        torch.manual_seed(1)
        return {"model": peft.get_peft_model(model, lora())}

    got, want = runs(tmp_path, make)
    assert "ref" in got.model.peft_config
    check(got, want)


@pytest.mark.skipif(
    int(trl.__version__.split(".")[1]) < 15, reason="TRL cannot train these before 1.15"
)
def test_prompt_learning(tmp_path: Path) -> None:
    """Virtual tokens before each row; what they predict is not scored."""

    def make() -> dict[str, Any]:
        given = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 3}
        return {"peft_config": peft.PromptTuningConfig(**given)}

    got, want = runs(tmp_path, make, learning_rate=0.3)
    assert got._prefkit.layout == "padded"
    check(got, want)


@pytest.mark.parametrize("ld_alpha", [None, 0.5])
def test_precomputed_reference(ld_alpha: float | None, tmp_path: Path) -> None:
    options = {"precompute_ref_log_probs": True, "precompute_ref_batch_size": 3}
    own = lambda: {"ref_model": moved(), "eval_dataset": ROWS[:6]}  # noqa: E731
    got, want = runs(tmp_path, own, ld_alpha=ld_alpha, **options)
    for name in ("ref_chosen_logps", "ref_rejected_logps"):
        assert got.train_dataset[name] == pytest.approx(want.train_dataset[name], rel=1e-5)
    check(got, want)
    assert got.evaluate()["eval_loss"] == pytest.approx(want.evaluate()["eval_loss"], rel=1e-3)


def test_checkpointed_activations(tmp_path: Path) -> None:
    """As TRL does by default; also of the adapter's reference."""
    check(*runs(tmp_path, lambda: {"peft_config": lora()}, gradient_checkpointing=True, seed=3))


def test_a_reference_that_follows_the_policy(tmp_path: Path) -> None:
    options = {"sync_ref_model": True, "ref_model_sync_steps": 2, "max_steps": 4}
    check(*runs(tmp_path, **options))


def test_bf16_and_compute_metrics(tmp_path: Path) -> None:
    """The logits that compute_metrics asks for are made after the loss."""
    seen: list[Any] = []

    def count(found: Any) -> dict[str, float]:
        seen.append([array.shape for array in found.predictions])
        return {"batches": float(len(found.predictions))}

    own = {"ref_model": moved(), "eval_dataset": ROWS[:4], "compute_metrics": count}
    got = trainer(ours(), tmp_path, **own, bf16=True, max_steps=2)
    got.train()
    assert "eval_batches" in got.evaluate()
    assert seen
    losses = [line["loss"] for line in got.state.log_history if "loss" in line]
    assert losses[-1] < losses[0]


def test_the_model_is_saved_as_ever(tmp_path: Path) -> None:
    """The fused head and the attention leave no trace in what is saved."""
    folder = save_model(tmp_path / "model", scale=3.0)
    options = {**run_options(tmp_path / "out"), **QUIET, "max_steps": 2, "save_strategy": "steps"}
    made = ours()(
        folder,
        args=trl.DPOConfig(**options, save_steps=2),
        train_dataset=datasets.Dataset.from_list(ROWS),
        processing_class=byte_tokenizer(),
    )
    made.train()
    from transformers import AutoModelForCausalLM

    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "checkpoint-2")
    assert "prefkit" not in saved.config._attn_implementation
    ids = torch.arange(6)[None]
    torch.testing.assert_close(saved(ids).logits, made.model(ids).logits, rtol=1e-5, atol=1e-5)
    assert "prefkit" not in os.linesep.join(
        path.read_text() for path in (tmp_path / "out" / "checkpoint-2").glob("config.json")
    )
