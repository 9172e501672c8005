"""Supervised fine-tuning: plain cross-entropy to the last digit, however rows are batched."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file

from prefkit import SupervisedConfig, SupervisedTrainer
from prefkit.data import prepare_pairs, prepare_solutions
from prefkit.data.text.render import TokenizeOptions
from prefkit.errors import ConfigError, ModelError, PrefkitError, RowError
from prefkit.train.checkpointing import checkpoint
from tests.torchrun import launch
from tests.train.test_trainer import FirstGradient
from tests.train.trainer_cases import (
    byte_tokenizer,
    logs_of,
    run_options,
    save_model,
    tiny_model,
    weights_of,
)

ROOT = Path(__file__).parents[2]
# Responses of very different lengths: a mean over batches is not a mean over tokens.
ROWS: list[dict[str, Any]] = [
    {"prompt": f"{a}*{b}=", "response": f" {a * b}" + ", of course" * (a % 3)}
    for a in range(1, 7)
    for b in range(2, 4)
]
ROWS[5] |= {"prefix": " well,"}


def trainer(folder: Path, model: Any = None, rows: Any = None, **changes: Any) -> SupervisedTrainer:
    own = {k: changes.pop(k) for k in ("eval_dataset", "peft_config", "callbacks") if k in changes}
    return SupervisedTrainer(
        tiny_model() if model is None else model,
        args=SupervisedConfig(**{**run_options(folder), **changes}),
        train_dataset=ROWS if rows is None else rows,
        processing_class=byte_tokenizer(),
        **own,
    )


def by_definition(model: Any, rows: list[dict[str, Any]]) -> torch.Tensor:
    """Mean cross-entropy of the response's bytes and the end token, row by row, from logits."""
    losses = [
        torch.nn.functional.cross_entropy(logits, targets, reduction="none")
        for logits, targets in responses(model, rows)
    ]
    return torch.cat(losses).mean()


def responses(model: Any, rows: list[dict[str, Any]]) -> Iterator[tuple[torch.Tensor, Any]]:
    """Logits and targets of the response's bytes and the end token, row by row."""
    read = byte_tokenizer()
    for row in rows:
        front = read(row["prompt"] + row.get("prefix", ""))["input_ids"]
        ids = torch.tensor([[*front, *read(row["response"])["input_ids"], 256]])
        yield model(input_ids=ids).logits[0, len(front) - 1 : -1], ids[0, len(front) :]


@pytest.mark.parametrize("family", ["llama", "gemma2", "granite", "gpt2"])
@pytest.mark.parametrize(
    "batches",
    [{"per_device_train_batch_size": 12}]
    + [{"per_device_train_batch_size": b, "gradient_accumulation_steps": 12 // b} for b in (1, 3)],
)
@pytest.mark.parametrize("layout", ["auto", "padded"])
def test_the_gradient_is_that_of_plain_cross_entropy(
    family: str, batches: dict[str, int], layout: str, tmp_path: Path
) -> None:
    want = tiny_model(family, scale=3.0).double().eval()
    loss = by_definition(want, ROWS)
    loss.backward()
    keep = FirstGradient()
    trained = trainer(
        tmp_path,
        tiny_model(family, scale=3.0).double(),
        callbacks=[keep],
        max_steps=1,
        max_grad_norm=0.0,
        layout=layout,
        pad_to_multiple_of=8,
        **batches,
    )
    trained.train()
    assert trained.layout == ("separate" if layout == "auto" else "padded")
    # Gemma-2's own softmax of the attention is in fp32, so that lengths of rows show a little.
    near = {"rtol": 1e-4, "atol": 1e-7} if family == "gemma2" else {"rtol": 1e-8, "atol": 1e-11}
    for name, parameter in want.named_parameters():
        torch.testing.assert_close(keep.grads[name], parameter.grad, **near)
    assert logs_of(trained)[0]["loss"] == pytest.approx(loss.item(), rel=1e-6)


def test_evaluation_is_a_mean_over_tokens(tmp_path: Path) -> None:
    model = tiny_model(scale=3.0)
    want = float(by_definition(tiny_model(scale=3.0), ROWS[:7]))
    made = trainer(tmp_path, model, eval_dataset=ROWS[:7], per_device_eval_batch_size=3)
    assert made.evaluate()["eval_loss"] == pytest.approx(want, rel=1e-5)
    assert made.evaluate(ROWS[:7])["eval_loss"] == pytest.approx(want, rel=1e-5)
    several = trainer(tmp_path, tiny_model(scale=3.0), eval_dataset={"a": ROWS[:7], "b": ROWS[7:]})
    assert several.evaluate()["eval_a_loss"] == pytest.approx(want, rel=1e-5)


def test_accuracy_and_entropy_are_means_over_tokens(tmp_path: Path) -> None:
    made = trainer(
        tmp_path, max_steps=30, eval_dataset=ROWS, log_entropy=True, per_device_eval_batch_size=5
    )
    made.train()
    got = made.evaluate()
    with torch.no_grad():
        pieces = list(responses(made.model.eval(), ROWS))
    logits, targets = (torch.cat(parts) for parts in zip(*pieces, strict=True))
    hits = (logits.argmax(1) == targets).double().mean()
    entropy = torch.distributions.Categorical(logits=logits).entropy().mean()
    assert 0 < hits < 1
    assert got["eval_mean_token_accuracy"] == pytest.approx(float(hits))
    assert got["eval_entropy"] == pytest.approx(float(entropy), rel=1e-5)
    line = logs_of(made)[-1]
    assert line["num_tokens"] == line["num_tokens_read"] > 0
    assert "entropy" not in trainer(tmp_path, eval_dataset=ROWS[:2]).loss.metrics


@pytest.mark.parametrize("lora", [False, True])
def test_it_learns_the_responses(lora: bool, tmp_path: Path) -> None:
    adapter = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear") if lora else None
    made = trainer(tmp_path, max_steps=40, eval_dataset=ROWS, peft_config=adapter)
    before = made.evaluate()["eval_loss"]
    made.train()
    gain = 0.1 if lora else 1.0  # the tiny model's head is random, and an adapter leaves it so
    assert made.evaluate()["eval_loss"] < before - gain
    made.save_model()
    assert (tmp_path / ("adapter_model" if lora else "model")).with_suffix(".safetensors").exists()


def test_a_solution_is_tokenised_as_a_pair_s_side() -> None:
    tokenizer = byte_tokenizer()
    options = TokenizeOptions(max_length=22, too_long="truncate_end", prompt_template="Q {prompt}")
    pairs = [
        {"prompt": r["prompt"], "chosen": r["response"], "rejected": "no"}
        | ({"prefix": r["prefix"], "append_eos": True} if "prefix" in r else {})
        for r in ROWS
    ]
    want = prepare_pairs(pairs, tokenizer, options).pairs
    made = prepare_solutions(ROWS, tokenizer, options)
    for side, pair in zip(made.sides, want, strict=True):
        for name in ("ids", "scored", "weights"):
            assert getattr(side, name).tolist() == getattr(pair.chosen, name).tolist()
        assert side.eos == pair.chosen.eos
    assert made.report.truncated > 0


def test_bad_rows(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    for row, said in (
        ({"prompt": "a"}, "'response': is missing. Give every row prompt and response"),
        ({"response": "a"}, "'prompt': is missing. Give every row prompt and response"),
        ({"prompt": "a", "response": " "}, "'response': is empty"),
        ({"prompt": "a", "response": "b", "prefx": "c"}, "nearly 'prefix'"),
        ({"prompt": "a", "response": "b" * 300}, "more than max_length 256"),
    ):
        with pytest.raises(RowError, match=f"row 1.*{said}"):
            prepare_solutions([ROWS[0], row], tokenizer, TokenizeOptions(max_length=256))
    listed = tmp_path / "skipped.jsonl"
    made = prepare_solutions(
        [{"prompt": "a"}, ROWS[0]], tokenizer, on_bad_row="skip", skipped_file=listed
    )
    assert len(made) == 1
    assert '"row": 0, "field": "response"' in listed.read_text()
    with pytest.raises(PrefkitError, match="no usable row"):
        prepare_solutions([{"prompt": "a"}], tokenizer, on_bad_row="skip")


def test_bad_options(tmp_path: Path) -> None:
    for changes, said in (
        ({"layout": "shared"}, "layout is 'shared'"),
        ({"max_length": 0}, "max_length is 0"),
        ({"learning_rate": "1e-3"}, "learning_rate is '1e-3'"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps is 0"),
        ({"eval_strategy": "epoch"}, "there is no eval_dataset"),
    ):
        with pytest.raises(ConfigError, match=said):
            trainer(tmp_path, **changes)
    with pytest.raises(ModelError, match="model is a int"):
        trainer(tmp_path, 3)
    with pytest.raises(ConfigError, match="predict returns logits"):
        trainer(tmp_path).predict(ROWS)
    with pytest.raises(ConfigError, match="must be a SupervisedConfig"):
        SupervisedTrainer(tiny_model(), args=made_by_another(tmp_path))


def made_by_another(folder: Path) -> Any:
    from prefkit import PreferenceConfig

    return PreferenceConfig(output_dir=str(folder))


TWO = """
import json, sys
from collections.abc import Iterator
from pathlib import Path
from prefkit.train.checkpointing.leaving import leave_group
from tests.train.test_supervised import trainer, ROWS
from tests.train.trainer_cases import logs_of, tiny_model

folder = Path(sys.argv[1])
made = trainer(
    folder, tiny_model(scale=3.0), max_steps=3, per_device_train_batch_size=int(sys.argv[2]),
    gradient_accumulation_steps=2, eval_dataset=ROWS[:5], use_cpu=True,
)
made.train()
evaluation = made.evaluate()["eval_loss"]
if made.is_world_process_zero():
    total = float(sum(p.detach().double().abs().sum() for p in made.model.parameters()))
    losses = [line["loss"] for line in logs_of(made)]
    result = {"losses": losses, "eval": evaluation, "weights": total}
    (folder / "result.json").write_text(json.dumps(result))
leave_group()
"""


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    """Their windows hold different numbers of tokens, and the mean runs over all of them."""
    options: dict[str, Any] = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    one = trainer(
        tmp_path / "one", tiny_model(scale=3.0), max_steps=3, eval_dataset=ROWS[:5], **options
    )
    one.train()
    (tmp_path / "two.py").write_text(TWO)
    (tmp_path / "two").mkdir()
    done = launch(2, tmp_path / "two.py", str(tmp_path / "two"), "2")
    assert done.returncode == 0, done.stderr[-3000:]
    two = json.loads((tmp_path / "two" / "result.json").read_text())
    assert two["losses"] == pytest.approx([line["loss"] for line in logs_of(one)], rel=1e-5)
    total = float(sum(p.detach().double().abs().sum() for p in one.model.parameters()))
    assert two["weights"] == pytest.approx(total, rel=1e-6)
    assert two["eval"] == pytest.approx(one.evaluate()["eval_loss"], rel=1e-5)


# -- resume ---------------------------------------------------------------------------------------

RUN: dict[str, Any] = {
    "max_steps": 12,
    "save_strategy": "steps",
    "save_steps": 2,
    "save_total_limit": 2,
    "lr_scheduler_type": "cosine",
    "gradient_accumulation_steps": 2,
    "per_device_train_batch_size": 3,
}
SCRIPT = """
import sys
from collections.abc import Iterator
from pathlib import Path
from tests.train.test_supervised import RUN, trainer
made = trainer(Path(sys.argv[2]), sys.argv[1], **RUN)
made.train(resume_from_checkpoint="auto")
made.save_model()
"""


def test_a_run_killed_with_9_ends_with_the_same_weights(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model")
    whole = trainer(tmp_path / "whole", model, **RUN)
    whole.train()
    command = [sys.executable, "-c", SCRIPT, model, str(tmp_path / "killed")]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels/torch-ext'}"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    deadline = time.monotonic() + 60
    while checkpoint.newest_complete(tmp_path / "killed")[0] is None:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    saved = load_file(tmp_path / "killed" / "model.safetensors")
    for name, value in weights_of(whole.model).items():
        assert torch.equal(saved[name], value), name
