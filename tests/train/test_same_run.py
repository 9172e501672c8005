"""A resumed run has the options of the run that it goes on with, whatever version wrote them."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from prefkit import ConfigError
from prefkit.cli.train import load_options
from prefkit.train.checkpointing.checkpoint import mark_complete
from prefkit.train.checkpointing.same_run import CONFIG_FILE, check_same_run

NEEDED = {"model": "m", "train_data": ["a.jsonl"]}


def resumed(folder: Path, then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What is said where a run with the options `now` goes on with one that had `then`."""
    checkpoint = folder / "checkpoint-2"
    checkpoint.mkdir(parents=True)
    for name in ("trainer_state.json", "optimizer.pt"):
        (checkpoint / name).write_text("{}")
    mark_complete(checkpoint)
    (folder / CONFIG_FILE).write_text(yaml.safe_dump({**NEEDED, **then}))
    given = {**NEEDED, **now, "output_dir": str(folder), "resume_from_checkpoint": "auto"}
    file = folder / "now.yaml"
    file.write_text(yaml.safe_dump(given))
    said: list[str] = []
    check_same_run(load_options([str(file)]), said.append)
    return said


@pytest.mark.parametrize(
    ("then", "now"),
    [
        ({}, {}),
        ({}, {"beta": 0.1}),
        ({"method": "step-dpo"}, {"method": "step-dpo", "beta": 0.4}),
        (
            {"method": "cdpo", "reduction": "position"},
            {"method": "cdpo", "reduction": "position", "beta": 0.1},
        ),
        ({"method": "tdpo2", "alpha": 0.5}, {"method": "tdpo2"}),
        ({"method": "simpo", "margin": 1.0}, {"method": "simpo"}),
        ({"method": "dpop"}, {"method": "dpop", "penalty": 50}),
        ({"link": "ipo"}, {"loss_type": "ipo"}),
        ({}, {"loss_type": ["sigmoid"], "loss_weights": [1.0]}),
        ({"use_weighting": True}, {"pair_weights": "wpo"}),
        ({"head_schedule": "two_pass"}, {"head_passes": "two_pass"}),
        ({"train_data": "a.jsonl"}, {"train_data": ["a.jsonl"]}),
        ({"adapter": "lora"}, {"use_peft": True}),
        ({"dtype": "bfloat16"}, {"model_init_kwargs": {"dtype": "bfloat16"}}),
    ],
)
def test_the_same_options_in_other_words_are_the_same(
    then: dict[str, Any], now: dict[str, Any], tmp_path: Path
) -> None:
    assert resumed(tmp_path / "run", then, now) == []


@pytest.mark.parametrize(
    ("then", "now", "change"),
    [
        ({}, {"beta": 0.2}, "beta 0.1 → 0.2"),
        ({"method": "dpop", "penalty": 5.0}, {"method": "dpop"}, "penalty 5 → 50"),
        ({}, {"margin_weight": 1.0}, "margin_weight 0 → 1"),
        ({}, {"token_weights": "confpo"}, "token_weights None → 'confpo'"),
        ({"token_weights": "tis_dpo"}, {"token_weights": "ld_dpo"}, "'tis_dpo' → 'ld_dpo'"),
        ({"loss_type": ["ipo", "sft"]}, {}, r"loss_type \('ipo', 'sft'\) → 'sigmoid'"),
        ({"lora_r": 8, "adapter": "lora"}, {"adapter": "lora"}, "lora_r 8 → 16"),
        ({"seed": 1}, {}, "seed 1 → 42"),
        ({"revision": "v1"}, {"revision": "v2"}, "revision 'v1' → 'v2'"),
        ({"adapter": "lora"}, {"adapter": "lora", "use_dora": True}, "use_dora False → True"),
        ({"sync_ref_model": True}, {}, "sync_ref_model True → False"),
    ],
)
def test_what_decides_what_is_learnt_stays(
    then: dict[str, Any], now: dict[str, Any], change: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=f"trained with other options: .*{change}"):
        resumed(tmp_path / "run", then, now)


def test_what_may_change_is_told(tmp_path: Path) -> None:
    said = resumed(tmp_path / "run", {"head_schedule": "two_pass"}, {"logging_steps": 5})
    (line,) = said
    assert "head_passes 'two_pass' → 'auto'" in line
    assert "logging_steps 10 → 5" in line
