"""A reference that follows the policy: TRL's numbers, exact when resumed; and the refusals."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig

from prefkit.errors import ConfigError, ModelError
from prefkit.train.checkpointing import checkpoint
from tests.train.trainer_cases import config, logs_of, tiny_model, trainer

SYNCED: dict[str, Any] = {
    "sync_ref_model": True,
    "ref_model_sync_steps": 2,
    "ref_model_mixup_alpha": 0.6,
}
LORA = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])


def reference_of(run: Any) -> list[torch.Tensor]:
    return [value.detach().clone() for value in run.reference.model.parameters()]


@pytest.mark.parametrize("alpha", [0.6, 1.0])
@pytest.mark.parametrize("family", ["llama", "llama-tied"])
def test_the_reference_moves_as_in_trl(alpha: float, family: str, tmp_path: Path) -> None:
    pytest.importorskip("trl", reason="trl is the one to compare with")
    from tests.train.test_trainer_trl import compare, train_with_trl

    options = {**SYNCED, "ref_model_mixup_alpha": alpha}
    ours = trainer(tmp_path / "ours", tiny_model(family, scale=3.0), log_entropy=True, **options)
    before = reference_of(ours)
    ours.train()
    theirs = train_with_trl(tmp_path / "trl", family, **options)
    compare(ours, theirs)
    moved = reference_of(ours)
    for one, two in zip(moved, theirs.ref_model.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=2e-4)
    assert max(float((a - b).abs().max()) for a, b in zip(before, moved, strict=True)) > 1e-3
    if alpha == 1.0:  # after the last step, a multiple of two, it is the policy
        for one, two in zip(moved, ours.model.parameters(), strict=True):
            assert torch.equal(one, two)


def test_rewards_start_again_from_a_reference_that_became_the_policy(tmp_path: Path) -> None:
    run = trainer(tmp_path, **{**SYNCED, "ref_model_mixup_alpha": 1.0, "method": "tdpo2"})
    run.train()
    losses = [line["loss"] for line in logs_of(run)]
    assert losses[0] == pytest.approx(0.693147, abs=1e-5)
    assert losses[1] != pytest.approx(0.693147, abs=1e-3)
    assert losses[2] == pytest.approx(0.693147, abs=1e-5)


def test_resume_is_exact(tmp_path: Path) -> None:
    options: dict[str, Any] = {**SYNCED, "save_strategy": "steps", "save_steps": 3, "max_steps": 6}
    whole = trainer(tmp_path / "out", **options)
    whole.train()
    checkpoint.delete(tmp_path / "out" / "checkpoint-6")
    again = trainer(tmp_path / "out", **options)
    again.train(resume_from_checkpoint="auto")
    for one, two in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(one, two)
    for one, two in zip(reference_of(again), reference_of(whole), strict=True):
        assert torch.equal(one, two)
    assert logs_of(again)[-1]["rewards/chosen"] == logs_of(whole)[-1]["rewards/chosen"]


def test_a_checkpoint_without_a_reference_is_refused(tmp_path: Path) -> None:
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2}
    trainer(tmp_path, **saving).train()
    with pytest.raises(ModelError, match=r"holds no reference\.safetensors"):
        trainer(tmp_path, **saving, **SYNCED).train(resume_from_checkpoint=True)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no reference": ({"method": "simpo"}, "reads no reference"),
    "a cache": ({"precompute_ref_log_probs": True}, "precompute_ref_log_probs keeps what"),
    "nothing to follow": ({"sync_ref_model": False}, "ref_model_sync_steps has no effect"),
    "no step": ({"ref_model_sync_steps": 0}, "ref_model_sync_steps is 0; it must be"),
    "no share": ({"ref_model_mixup_alpha": 0.0}, r"ref_model_mixup_alpha is 0.0; it must be in"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_options_that_do_not_go_together(case: str, tmp_path: Path) -> None:
    changes, words = REFUSED[case]
    with pytest.raises(ConfigError, match=words):
        config(tmp_path, **{"sync_ref_model": True, "ref_model_sync_steps": 2, **changes})


def test_an_adapter_has_no_reference_to_move(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sync_ref_model and an adapter"):
        trainer(tmp_path, peft_config=LORA, **SYNCED)


def test_another_architecture_cannot_be_mixed(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"embed_tokens.weight is \(264, 16\) in the one"):
        trainer(tmp_path, ref_model=tiny_model(hidden_size=24, head_dim=12), **SYNCED)
