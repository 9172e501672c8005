"""The card of a trained model: true, complete, and never in the place of another README."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from peft import LoraConfig

from prefkit.cli.main import main
from tests.cli.test_cli import write_rows
from tests.train import test_supervised
from tests.train.trainer_cases import ROWS, logs_of, save_model, trainer

LORA = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], r=4)


def saved(folder: Path, **changes: Any) -> tuple[Any, ModelCard]:
    run = trainer(folder, **{"max_steps": 2, **changes})
    run.train()
    run.save_model()
    return run, ModelCard.load(folder / "README.md")


def test_a_card_tells_what_was_done(tmp_path: Path) -> None:
    run, card = saved(tmp_path / "out", method="tdpo2", beta=0.3, eval_dataset=ROWS[:2])
    assert card.data.tags == ["generated_from_trainer", "prefkit", "tdpo2"]
    assert card.data.library_name == "transformers"
    assert card.data.base_model is None  # it has no name
    assert "by `tdpo2`" in card.text
    assert "https://arxiv.org/abs/2404.11999" in card.text
    assert "| optimiser steps | 2 |" in card.text
    assert "| rows of data | 24 |" in card.text
    first, last = (line["loss"] for line in logs_of(run))
    assert f"| loss | {first:.4f} | {last:.4f} |" in card.text
    for package in ("prefkit", "torch", "transformers"):
        assert f"{package} " in card.text.split("## Versions")[1]
    options = yaml.safe_load(card.text.split("```yaml\n")[1].split("```")[0])
    assert options["method"] == "tdpo2"
    assert options["beta"] == 0.3
    assert options["max_steps"] == 2
    assert "output_dir" not in options
    assert "prefkit" in run.model.model_tags


def test_an_adapters_card_replaces_the_form_of_peft(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base")
    _, card = saved(tmp_path / "out", model=base, peft_config=LORA)
    assert card.data.library_name == "peft"
    assert card.data.base_model is None  # a folder is no name on the Hub
    assert f"`{base}`" in card.text
    assert "| adapter | LORA of rank 4 |" in card.text
    assert "More Information Needed" not in card.text


def test_a_readme_of_somebody_else_stays(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("My own words.")
    run = trainer(tmp_path, peft_config=LORA, max_steps=1)
    run.train()
    run.save_model()
    run.create_model_card()
    assert (tmp_path / "README.md").read_text() == "My own words."
    assert (tmp_path / "adapter_model.safetensors").is_file()


def test_our_own_is_written_anew(tmp_path: Path) -> None:
    run, first = saved(tmp_path / "out")
    run.create_model_card("a name", "some/data", tags="mine", license="apache-2.0")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.content != first.content
    assert card.data.model_name == "a name"
    assert card.data.datasets == "some/data"
    assert card.data.license == "apache-2.0"
    assert "mine" in card.data.tags


def test_no_token_is_ever_in_it(tmp_path: Path) -> None:
    loading = {"token": "hf_secret", "attn_implementation": "eager"}
    named = {"model": save_model(tmp_path / "base"), "model_init_kwargs": loading}
    run, card = saved(tmp_path / "out", hub_token="hf_secret", **named)
    assert "hf_secret" not in card.content
    assert "attn_implementation: eager" in card.text
    assert "# Secrets are not written down: model_init_kwargs.token." in card.text
    assert "hf_secret" not in str(run.args.to_dict())  # which loggers send away


def test_no_token_of_a_kept_config_is_in_it(tmp_path: Path) -> None:
    """A version of prefkit that wrote them down may have begun the run."""
    (tmp_path / "prefkit_config.yaml").write_text("beta: 0.1\nhub_token: hf_secret\n")
    _, card = saved(tmp_path)
    assert "hf_secret" not in card.content
    assert "beta: 0.1" in card.text


def test_the_command_line_gives_its_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", save_model(tmp_path / "model"), "--output_dir", str(tmp_path / "out")]
    words += ["--train_data", write_rows(tmp_path / "rows.jsonl", ROWS), "--max_steps", "1"]
    assert main(["train", *words, "--logging_steps", "1", "--disable_tqdm", "true"]) == 0
    card = ModelCard.load(tmp_path / "out" / "README.md")
    given = (tmp_path / "out" / "prefkit_config.yaml").read_text()
    assert f"```yaml\n{given}```" in card.text
    assert "`prefkit train prefkit_config.yaml`" in card.text


def test_supervised_runs_have_one_too(tmp_path: Path) -> None:
    run = test_supervised.trainer(tmp_path / "out")
    run.train()
    run.save_model()
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert "trained on solutions" in card.text
    assert "sft" in card.data.tags
