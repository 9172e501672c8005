"""Checkpoints: complete or recognisably not; a killed run ends as one that was not killed."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer

from prefkit.errors import ConfigError, ModelError
from prefkit.train.checkpointing import checkpoint
from tests.train.trainer_cases import (
    MOE,
    ROWS,
    TREE_ROWS,
    logs_of,
    save_model,
    tiny_model,
    trainer,
    weights_of,
)

ROOT = Path(__file__).parents[2]


def make(folder: Path, step: int, complete: bool = True) -> Path:
    """A folder that looks like a checkpoint."""
    path = folder / f"checkpoint-{step}"
    (path / "deep").mkdir(parents=True)
    for name in ("model.safetensors", "optimizer.pt", "trainer_state.json", "deep/x"):
        (path / name).write_text(name * 5)
    if complete:
        checkpoint.mark_complete(path)
    return path


def test_complete_and_not(tmp_path: Path) -> None:
    whole = make(tmp_path, 5)
    assert checkpoint.problem_with(whole) is None
    assert "cut off" in str(checkpoint.problem_with(make(tmp_path, 6, complete=False)))
    assert "no such folder" in str(checkpoint.problem_with(tmp_path / "checkpoint-7"))
    (whole / "optimizer.pt").write_text("short")
    assert "optimizer.pt has 5 bytes" in str(checkpoint.problem_with(whole))
    (whole / "optimizer.pt").unlink()
    assert "optimizer.pt is missing" in str(checkpoint.problem_with(whole))
    (whole / checkpoint.MARKER).write_text("{")
    assert "cannot be read" in str(checkpoint.problem_with(whole))


def test_model_only_checkpoints_cannot_be_resumed(tmp_path: Path) -> None:
    path = make(tmp_path, 1, complete=False)
    (path / "optimizer.pt").unlink()
    checkpoint.mark_complete(path)
    assert "save_only_model" in str(checkpoint.problem_with(path))


def test_the_newest_complete_one_is_chosen_and_others_are_named(tmp_path: Path) -> None:
    make(tmp_path, 9)
    make(tmp_path, 10)
    make(tmp_path, 100, complete=False)
    said: list[str] = []
    chosen = checkpoint.resolve_resume("auto", tmp_path, said.append)
    assert chosen == str(tmp_path / "checkpoint-10")
    assert "Passing over" in said[0]
    assert "checkpoint-100" in said[0]
    assert checkpoint.resolve_resume(True, tmp_path, said.append) == chosen
    assert checkpoint.resolve_resume("true", tmp_path, said.append) == chosen
    assert checkpoint.resolve_resume(None, tmp_path, said.append) is None
    assert checkpoint.resolve_resume("false", tmp_path, said.append) is None


def test_nothing_to_resume_from(tmp_path: Path) -> None:
    assert checkpoint.resolve_resume("auto", tmp_path, print) is None
    with pytest.raises(ConfigError, match="'auto'"):
        checkpoint.resolve_resume(True, tmp_path, print)
    broken = make(tmp_path, 3, complete=False)
    with pytest.raises(ConfigError, match="checkpoint-3"):
        checkpoint.resolve_resume(str(broken), tmp_path, print)


def test_rotation_never_deletes_the_last_complete_one(tmp_path: Path) -> None:
    for step, complete in ((1, True), (2, True), (3, False), (4, True), (5, False)):
        make(tmp_path, step, complete)
    checkpoint.rotate(tmp_path, 1, keep=tmp_path / "checkpoint-1")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"checkpoint-1", "checkpoint-4", "checkpoint-5"}
    checkpoint.rotate(tmp_path, None)
    assert {path.name for path in tmp_path.iterdir()} == left


def test_final_save_is_atomic(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("old")

    def dies(folder: str) -> None:
        Path(folder, "model.safetensors").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoint.save_atomically(dies, tmp_path)
    assert (tmp_path / "model.safetensors").read_text() == "old"
    checkpoint.save_atomically(
        lambda folder: Path(folder, "model.safetensors").write_text("new") and None, tmp_path
    )
    assert (tmp_path / "model.safetensors").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


# -- resume ---------------------------------------------------------------------------------------

RUN: dict[str, Any] = {
    "max_steps": 8,
    "save_strategy": "steps",
    "save_steps": 2,
    "lr_scheduler_type": "cosine",
    "gradient_accumulation_steps": 2,
    "per_device_train_batch_size": 3,
}


def assert_same_weights(got: Any, want: Any) -> None:
    for (name, one), two in zip(got.named_parameters(), want.parameters(), strict=True):
        assert torch.equal(one, two), name


@pytest.mark.parametrize("changes", [{}, {"method": "tdpo2"}, {"precompute_ref_log_probs": True}])
def test_resume_is_exact(changes: dict[str, Any], tmp_path: Path) -> None:
    """Dropout on, several passes, resumed in the middle of one: the same weights and log."""
    options = {**RUN, **changes, "disable_dropout": False}
    model = {"attention_dropout": 0.2}
    whole = trainer(tmp_path / "whole", tiny_model(**model), **options)
    whole.train()
    half = trainer(tmp_path / "half", tiny_model(**model), **options)
    half.train()
    for step in (6, 8):
        checkpoint.delete(tmp_path / "half" / f"checkpoint-{step}")
    again = trainer(tmp_path / "half", tiny_model(**model), **options)
    again.train(resume_from_checkpoint="auto")
    assert_same_weights(again.model, whole.model)
    for got, want in zip(logs_of(again), logs_of(whole), strict=True):
        for name in ("loss", "rewards/margins", "num_tokens", "num_tokens_read", "learning_rate"):
            assert got[name] == want[name], (got["step"], name)


def test_lora_resume_is_exact(tmp_path: Path) -> None:
    from peft import LoraConfig

    def make_trainer(folder: str) -> Any:
        lora = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear")
        return trainer(tmp_path / folder, peft_config=lora, **RUN)

    whole = make_trainer("whole")
    whole.train()
    make_trainer("half").train()
    checkpoint.delete(tmp_path / "half" / "checkpoint-8")
    again = make_trainer("half")
    again.train(resume_from_checkpoint=True)
    assert_same_weights(again.model, whole.model)


@pytest.mark.parametrize("moment", ["among the files", "before the marker"])
def test_a_save_that_is_cut_off_keeps_the_one_before(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**RUN, "save_total_limit": 1}
    dying = trainer(tmp_path, **options)
    owner: Any = Trainer if moment == "among the files" else checkpoint
    name = "_save_rng_state" if owner is Trainer else "mark_complete"
    original = getattr(owner, name)

    def dies_at_six(*args: Any) -> None:
        if dying.state.global_step == 6:
            raise KeyboardInterrupt
        original(*args)

    monkeypatch.setattr(owner, name, dies_at_six)
    with pytest.raises(KeyboardInterrupt):
        dying.train()
    names = sorted(path.name for path in tmp_path.glob("checkpoint-*"))
    assert names == ["checkpoint-4", "checkpoint-6"]
    newest, passed_over = checkpoint.newest_complete(tmp_path)
    assert newest == tmp_path / "checkpoint-4"
    assert [path.name for path, _ in passed_over] == ["checkpoint-6"]


@pytest.mark.parametrize("length", [{"max_steps": 5}, {"max_steps": -1, "num_train_epochs": 2}])
def test_a_finished_run_stays_as_it_is(length: dict[str, Any], tmp_path: Path) -> None:
    """Killed between its last checkpoint and the final save, it must not train on."""
    options = {**RUN, **length, "lr_scheduler_type": "constant"}
    whole = trainer(tmp_path, **options)
    whole.train()
    again = trainer(tmp_path, **options)
    result = again.train(resume_from_checkpoint="auto")
    assert result.global_step == whole.state.global_step
    assert_same_weights(again.model, whole.model)
    assert logs_of(again) == logs_of(whole)
    longer = trainer(tmp_path, **{**options, "max_steps": whole.state.global_step + 2})
    assert longer.train(resume_from_checkpoint="auto").global_step == result.global_step + 2


def test_resume_against_another_reference_is_refused(tmp_path: Path) -> None:
    trainer(tmp_path, **RUN).train()
    with pytest.raises(ModelError, match="another reference"):
        trainer(tmp_path, tiny_model(seed=9), **RUN).train(resume_from_checkpoint=True)


# -- kill -9 --------------------------------------------------------------------------------------

STEPS = 40


def command(folder: Path, model: str, rows: Path) -> list[str]:
    options = {
        "model": model,
        "train_data": rows,
        "output_dir": folder,
        "max_steps": STEPS,
        "save_steps": 3,
        "save_total_limit": 2,
        "logging_steps": 1,
        "tokens_per_batch": 48,  # a question a row
        "learning_rate": 1e-2,
        "lr_scheduler_type": "cosine",
        "resume_from_checkpoint": "auto",
    }
    flags = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", "prefkit.cli.main", "train", *flags]


def run(arguments: list[str], kill_when: Any = None) -> bool:
    """Runs to the end, or kills -9 as soon as `kill_when()`; returns whether it was killed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(ROOT), str(ROOT / "kernels/torch-ext"), os.environ.get("PYTHONPATH", "")]
    )
    with subprocess.Popen(
        arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        if kill_when is not None:
            while process.poll() is None:
                if kill_when():
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                    return True
                time.sleep(0.002)
        output = process.communicate()[0]
    assert process.returncode == 0, output[-3000:]
    return False


def newest_step(folder: Path) -> int:
    found = checkpoint.list_checkpoints(folder)
    return int(found[0].name.split("-")[1]) if found else 0


@pytest.mark.slow
def test_kill_9_at_three_random_moments(tmp_path: Path) -> None:
    """Bit for bit the weights of an undisturbed run; each kill lands at a random moment."""
    import json

    model = save_model(tmp_path / "model", attention_dropout=0.1)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in TREE_ROWS))
    run(command(tmp_path / "whole", model, rows))
    chance = random.Random(os.environ.get("PREFKIT_TEST_SEED", "2"))
    killed_at = []
    for part in range(3):
        after = chance.randrange(3 + 9 * part, 12 + 9 * part)  # a checkpoint appears, then …
        deadline: list[float] = []

        def moment(after: int = after, deadline: list[float] = deadline) -> bool:
            if not deadline and newest_step(tmp_path / "killed") >= after:
                deadline.append(time.monotonic() + chance.random() * 0.2)
            return bool(deadline) and time.monotonic() >= deadline[0]

        if run(command(tmp_path / "killed", model, rows), moment):
            killed_at.append(newest_step(tmp_path / "killed"))
    assert len(killed_at) == 3, killed_at
    run(command(tmp_path / "killed", model, rows))
    got = load_file(tmp_path / "killed" / "model.safetensors")
    want = load_file(tmp_path / "whole" / "model.safetensors")
    start = load_file(tmp_path / "model" / "model.safetensors")
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name], want[name]) for name in want)
    assert not all(torch.equal(start[name], want[name]) for name in want)


@pytest.mark.parametrize("family", list(MOE))
def test_experts_are_loaded_from_a_checkpoint_too(family: str, tmp_path: Path) -> None:
    """They are saved under the names of their family's files, an expert a tensor."""
    whole = trainer(tmp_path, tiny_model(family, scale=3.0), **RUN)
    whole.train()
    shutil.rmtree(tmp_path / "checkpoint-8")
    again = trainer(tmp_path, tiny_model(family, scale=3.0), **RUN)
    again.train(resume_from_checkpoint="auto")
    assert_same_weights(again.model, whole.model)


def test_the_best_checkpoint_s_experts_are_loaded(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        **dict.fromkeys(("save_strategy", "eval_strategy"), "steps"),
        **dict.fromkeys(("save_steps", "eval_steps"), 2),
        **{"load_best_model_at_end": True, "metric_for_best_model": "eval_loss"},
        "greater_is_better": True,  # of a loss that falls: the first checkpoint is the best
    }
    trained = trainer(tmp_path, tiny_model("mixtral", scale=3.0), eval_dataset=ROWS, **options)
    trained.train()
    best = Path(trained.state.best_model_checkpoint or "")
    want = type(trained.model).from_pretrained(best).state_dict()  # type: ignore[union-attr]
    for name, weight in weights_of(trained.model).items():
        assert torch.equal(weight, want[name]), name
