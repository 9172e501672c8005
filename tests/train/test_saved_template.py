"""The template that trained is the template that is saved: the folder renders the trained ids."""

import logging
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig
from transformers import AutoTokenizer

from prefkit import PreferenceTrainer, SupervisedConfig, SupervisedTrainer
from prefkit.data import TokenizeOptions, prepare_pairs
from prefkit.data.text.template import PLAIN_TEMPLATE
from prefkit.errors import ConfigError
from tests.train.trainer_cases import byte_tokenizer, config, run_options, tiny_model, trainer

ROLES = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
OTHER = ROLES.replace("[assistant]", "(assistant)")
ROWS: list[dict[str, Any]] = [
    {
        "prompt": [{"role": "user", "content": f"{a}+1=?"}],
        "chosen": [{"role": "assistant", "content": f"{a + 1}"}],
        "rejected": [{"role": "assistant", "content": f"{a}!"}],
    }
    for a in range(4)
]
SAVING = {"max_steps": 1, "save_strategy": "steps", "save_steps": 1}
LORA = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])


def ids_by(folder: Path, row: dict[str, Any]) -> list[int]:
    """What whoever loads the folder writes for a row: the opened turn, the answer, the end."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
    return [*tokenizer(text + row["chosen"][0]["content"])["input_ids"], tokenizer.eos_token_id]


@pytest.mark.parametrize("form", ["text", "file", "plain", "prepared", "lora"])
def test_folders_write_what_was_trained(form: str, tmp_path: Path) -> None:
    file = tmp_path / "own.jinja"
    file.write_text(ROLES)
    given = {"file": str(file), "plain": "plain", "prepared": None}.get(form, ROLES)
    rows: Any = ROWS
    if form == "prepared":
        options = TokenizeOptions(chat_template=ROLES, max_length=256)
        rows = prepare_pairs(ROWS, byte_tokenizer(), options)
    more = {"peft_config": LORA} if form == "lora" else {}
    made = trainer(tmp_path / "out", rows=rows, chat_template=given, **SAVING, **more)
    made.train()
    made.save_model()
    for folder in (tmp_path / "out", tmp_path / "out" / "checkpoint-1"):
        saved = AutoTokenizer.from_pretrained(folder).chat_template
        assert saved == (PLAIN_TEMPLATE if form == "plain" else ROLES)
        for row, pair in zip(ROWS, made.train_dataset.pairs, strict=True):  # type: ignore[union-attr]
            assert ids_by(folder, row) == pair.chosen.ids.tolist()
    # Trained on from the folder, without the option, the rows are the same ids.
    again = prepare_pairs(ROWS, AutoTokenizer.from_pretrained(tmp_path / "out"))
    assert again.fingerprint == made.train_dataset.fingerprint  # type: ignore[union-attr]


def test_the_user_s_tokenizer_stays_as_it_is(tmp_path: Path) -> None:
    own = byte_tokenizer()
    own.chat_template, own.pad_token = OTHER, None
    for given, saved in ((ROLES, ROLES), (None, OTHER)):
        made = PreferenceTrainer(
            tiny_model(),
            args=config(tmp_path, chat_template=given),
            train_dataset=ROWS,
            processing_class=own,
        )
        assert made.processing_class.chat_template == saved
        assert (own.chat_template, own.pad_token) == (OTHER, None)


def test_supervised_folders_too(tmp_path: Path) -> None:
    rows = [{"prompt": r["prompt"], "response": r["chosen"][0]["content"]} for r in ROWS]
    made = SupervisedTrainer(
        tiny_model(),
        args=SupervisedConfig(**{**run_options(tmp_path), **SAVING}, chat_template=ROLES),
        train_dataset=rows,
        processing_class=byte_tokenizer(),
    )
    made.train()
    made.save_model()
    for folder in (tmp_path, tmp_path / "checkpoint-1"):
        for row, side in zip(ROWS, made.train_dataset.sides, strict=True):  # type: ignore[union-attr]
            assert ids_by(folder, row) == side.ids.tolist()


def test_rows_to_evaluate_on_are_written_as_the_trained_ones(tmp_path: Path) -> None:
    def prepared(template: str) -> Any:
        options = TokenizeOptions(chat_template=template, max_length=256)
        return prepare_pairs(ROWS, byte_tokenizer(), options)

    other = prepared(OTHER)
    trained: list[dict[str, Any]] = [
        {"rows": prepared(ROLES)},
        {"rows": ROWS, "chat_template": ROLES},
    ]
    for options in trained:
        with pytest.raises(ConfigError, match="eval rows were prepared with another chat template"):
            trainer(tmp_path, eval_dataset=other, **options)
        with pytest.raises(ConfigError, match="eval_a rows were prepared with another"):
            trainer(tmp_path, eval_dataset={"a": other}, **options)
        made = trainer(tmp_path, eval_dataset=prepared(ROLES), **options)
        with pytest.raises(ConfigError, match="eval rows were prepared with another"):
            made.evaluate(other)
        made.evaluate(prepared(ROLES))


def test_templates_that_do_not_agree(tmp_path: Path, caplog: Any) -> None:
    options = TokenizeOptions(chat_template=OTHER, max_length=256)
    rows = prepare_pairs(ROWS, byte_tokenizer(), options)
    with pytest.raises(ConfigError, match="prepared with another template"):
        trainer(tmp_path, rows=rows, chat_template=ROLES)
    trainer(tmp_path, rows=rows, **SAVING).train()
    with pytest.raises(ConfigError, match="another chat template had written"):
        trainer(tmp_path, rows=ROWS, chat_template=ROLES, **SAVING).train("auto")
    with caplog.at_level(logging.WARNING):
        reading = ROLES + "{% if x %}{% endif %}"
        trainer(tmp_path, rows=ROWS, chat_template=reading, chat_template_kwargs={"x": 1})
    (said,) = [r.message for r in caplog.records if "chat_template_kwargs" in r.message]
    assert "{'x': 1}" in said
