"""The command line as a user meets it: what it prints, its exit codes, and every mistake."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file

from prefkit.cli.main import main
from prefkit.train.checkpointing import checkpoint
from tests.train.trainer_cases import ROWS, byte_tokenizer, save_model, tiny_model

ROOT = Path(__file__).parents[2]


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A folder with a model, rows and a config that trains in a second."""
    save_model(tmp_path / "model")
    write_rows(tmp_path / "rows.jsonl", ROWS)
    options = {
        "model": str(tmp_path / "model"),
        "train_data": str(tmp_path / "rows.jsonl"),
        "output_dir": str(tmp_path / "out"),
        "max_steps": 4,
        "learning_rate": "1e-2",
        "logging_steps": 1,
        "disable_tqdm": True,
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(options))
    return tmp_path


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_train_from_a_file_and_flags(world: Path, capsys: Any) -> None:
    flags = ["--method", "tdpo2", "--eval_data", str(world / "rows.jsonl")]
    assert main(["train", str(world / "run.yaml"), *flags, "--eval_strategy", "epoch"]) == 0
    printed = capsys.readouterr()
    for word in ("rewards/margins", "rewards/accuracies", "kl/rejected", str(world / "out")):
        assert word in printed.out
    assert "24 pairs" in printed.err
    start = load_file(world / "model" / "model.safetensors")
    trained = load_file(world / "out" / "model.safetensors")
    assert start.keys() == trained.keys()
    assert any(not start[name].equal(trained[name]) for name in start)
    assert (world / "out" / "tokenizer.json").is_file()
    assert json.loads((world / "out" / "trainer_state.json").read_text())["log_history"]
    given = yaml.safe_load((world / "out" / "prefkit_config.yaml").read_text())
    assert given["method"] == "tdpo2"
    assert given["learning_rate"] == 0.01
    assert not (world / "out" / ".saving").exists()


def test_train_lora_and_go_on(world: Path, capsys: Any) -> None:
    flags = ["--adapter", "lora", "--lora_r", "2", "--save_steps", "2"]
    assert main(["train", str(world / "run.yaml"), *flags]) == 0
    assert (world / "out" / "adapter_model.safetensors").is_file()
    assert "adapter is in" in capsys.readouterr().out
    again = [*flags, "--max_steps", "6", "--resume_from_checkpoint", "auto"]
    assert main(["train", str(world / "run.yaml"), *again]) == 0
    assert (world / "out" / "checkpoint-6").is_dir()
    newest, _ = checkpoint.newest_complete(world / "out")
    assert newest == world / "out" / "checkpoint-6"


def test_mixed_files_and_skipped_rows_are_listed(world: Path, capsys: Any) -> None:
    bad = write_rows(world / "bad.jsonl", [{"prompt": "x", "chosen": "", "rejected": "y"}, ROWS[0]])
    flags = ["--train_data", str(world / "rows.jsonl"), bad, "--on_bad_row", "skip"]
    assert main(["train", str(world / "run.yaml"), *flags]) == 0
    assert "25 pairs" in capsys.readouterr().err
    listed = (world / "out" / "skipped_rows_train.jsonl").read_text().splitlines()
    assert json.loads(listed[0])["row"] == 0


def test_help_is_fast_and_names_every_option() -> None:
    """Fast, because nothing is imported that takes seconds."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    code = "import sys; from prefkit.cli.main import main; main(['train', '--help']); "
    code += "print(*sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    shown, imported = done.stdout, done.stderr.split()
    assert "prefkit.cli.main" in imported
    assert not {"torch", "transformers", "numpy", "datasets"} & {*imported}
    for word in ("--method", "--beta", "--max_length", "--adapter", "--save_steps", "tdpo2"):
        assert word in shown
    assert max(map(len, shown.splitlines())) <= 100


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from prefkit.cli.main import main; main(['train', '--help']); "
    code += "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT)
    assert done.returncode == 0


def test_overview_version_and_env(capsys: Any) -> None:
    assert main(["--help"]) == 0
    assert "inspect" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("prefkit ")
    assert main(["env", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["packages"]["torch"]
    assert found["head_backend"] in ("torch", "triton")
    assert main(["env"]) == 0


def test_inspect_is_reached(world: Path, capsys: Any) -> None:
    rows, model = str(world / "rows.jsonl"), str(world / "model")
    assert main(["inspect", rows, "--model", model, "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(ROWS)
    assert json.loads(lines[0])["pair"] == 0


def interrupt_after_step_3(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Ctrl-C does."""
    from transformers import Trainer

    original = Trainer.training_step

    def stops(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "training_step", stops)


def test_interruption_tells_how_to_go_on(
    world: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_after_step_3(monkeypatch)
    argv = ["train", str(world / "run.yaml"), "--save_steps", "2"]
    assert main(argv) == 130
    shown = capsys.readouterr().err
    assert "Interrupted at step 3" in shown
    assert "checkpoint-2" in shown
    assert f"{world / 'run.yaml'} --save_steps 2 --resume_from_checkpoint auto" in shown


# -- mistakes --------------------------------------------------------------------------------------


def other_tokenizer(world: Path) -> str:
    folder = world / "other"
    tiny_model(seed=1).save_pretrained(folder)
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([f"token{i}" for i in range(40)])
    tokenizer.save_pretrained(folder)
    return str(folder)


def shuffled_tokenizer(world: Path) -> str:
    """The same tokens, two of them with each other's id."""
    byte_tokenizer().save_pretrained(world / "shuffled")
    path = world / "shuffled" / "tokenizer.json"
    content = json.loads(path.read_text())
    vocab = content["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    path.write_text(json.dumps(content))
    return str(world / "shuffled")


def cut_weights(world: Path) -> str:
    path = world / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:200])
    return str(world / "model")


def missing_weights(world: Path) -> str:
    path = world / "model" / "model.safetensors"
    weights = load_file(path)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, path, metadata={"format": "pt"})
    return str(world / "model")


def strange_weights(world: Path) -> str:
    config = json.loads((world / "model" / "config.json").read_text())
    config["model_type"] = "unheard_of"
    (world / "model" / "config.json").write_text(json.dumps(config))
    save_file({}, world / "model" / "model.safetensors")
    return str(world / "model")


def adapter_folder(world: Path) -> str:
    (world / "adapter").mkdir()
    (world / "adapter" / "adapter_config.json").write_text("{}")
    return str(world / "adapter")


def bad_row(**changes: Any) -> Any:
    row = {"prompt": "1+1=", "chosen": " 2", "rejected": " 3", **changes}
    return lambda world: ["--train_data", write_rows(world / "b.jsonl", [*ROWS[:2], row])]


def raw(content: bytes) -> Any:
    def make(world: Path) -> list[str]:
        (world / "raw.jsonl").write_bytes(content)
        return ["--train_data", str(world / "raw.jsonl")]

    return make


def finished_run(world: Path) -> list[str]:
    (world / "out" / "checkpoint-4").mkdir(parents=True)
    return []


def output_in_a_file(world: Path) -> list[str]:
    (world / "file").write_text("")
    return ["--output_dir", str(world / "file" / "out")]


MISTAKES: dict[str, tuple[Any, list[str]]] = {
    "unknown flag": (["--betta", "1"], ["betta", "'beta'"]),
    "value of the wrong type": (["--max_steps", "many"], ["max_steps", "whole number"]),
    "unknown method": (["--method", "ppo"], ["method", "step-dpo"]),
    "option without effect": (["--alpha", "0.5"], ["alpha", "no effect"]),
    "float16 weights": (["--dtype", "float16"], ["dtype", "float32 --bf16"]),
    "float16 under an adapter": (["--dtype", "float16", "--adapter", "lora"], ["float32 --fp16"]),
    "tokenizer of another model": (
        lambda w: ["--tokenizer", shuffled_tokenizer(w)],
        ["tokenizer", "other ids"],
    ),
    "a seed below zero": (["--seed", "-1"], ["seed"]),
    "Triton without a GPU": (["--head_backend", "triton"], ["head_backend", "GPU"]),
    "Liger that is not there": (["--use_liger_kernel", "true"], ["use_liger_kernel", "liger"]),
    "DeepSpeed that is not there": (["--deepspeed", "ds.json"], ["deepspeed"]),
    "the Hub without a network": (["--push_to_hub", "true"], ["push_to_hub", "Hub"]),
    "no such model folder": (["--model", "/no/such"], ["model", "/no/such"]),
    "folder without a model": (lambda w: ["--model", str(w)], ["config.json"]),
    "an adapter of no model": (
        lambda w: ["--model", adapter_folder(w)],
        ["adapter_config.json", "names no base model"],
    ),
    "4 bits without the package": (
        ["--load_in_4bit", "true", "--adapter", "lora"],
        ["load_in_4bit", "bitsandbytes", "prefkit[qlora]"],
    ),
    "4 bits and nothing to train": (["--load_in_4bit", "true"], ["load_in_4bit", "adapter: lora"]),
    "two kinds of bits": (
        ["--load_in_4bit", "true", "--load_in_8bit", "true", "--adapter", "lora"],
        ["load_in_4bit and load_in_8bit"],
    ),
    "kinds of bits that are not there": (
        ["--bnb_4bit_quant_type", "fp4", "--adapter", "lora"],
        ["bnb_4bit_quant_type", "no effect"],
    ),
    "cut weights": (lambda w: ["--model", cut_weights(w)], ["cannot be loaded"]),
    "missing weights": (lambda w: ["--model", missing_weights(w)], ["layers.1.mlp.up_proj"]),
    "unknown architecture": (lambda w: ["--model", strange_weights(w)], ["unheard_of"]),
    "no such data": (["--train_data", "none.jsonl"], ["train_data", "none.jsonl"]),
    "no such eval data": (
        ["--eval_data", "none.json", "--eval_strategy", "epoch"],
        ["eval_data", "none.json"],
    ),
    "output is a file": (output_in_a_file, ["output_dir", "Choose another"]),
    "another run's output": (finished_run, ["checkpoint-4", "--resume_from_checkpoint"]),
    "nothing to resume": (["--resume_from_checkpoint", "true"], ["no complete checkpoint"]),
    "broken checkpoint": (
        lambda w: [*finished_run(w), "--resume_from_checkpoint", str(w / "out" / "checkpoint-4")],
        ["checkpoint-4", "auto"],
    ),
    "adapter on the head": (
        ["--adapter", "lora", "--lora_target_modules", "lm_head"],
        ["head", "lora_target_modules"],
    ),
    "adapter on nothing": (["--adapter", "lora", "--lora_target_modules", "nope"], ["nope"]),
    "reference of another tokenizer": (
        lambda w: ["--ref_model", other_tokenizer(w)],
        ["another tokenizer"],
    ),
    "missing field": (bad_row(rejected=None), ["row 2", "rejected"]),
    "empty field": (bad_row(chosen=""), ["row 2", "chosen"]),
    "chosen is rejected": (bad_row(rejected=" 2"), ["row 2", "same"]),
    "weights of another length": (bad_row(rejected_weights=[1.0]), ["row 2", "rejected_weights"]),
    "NaN weights": (bad_row(rejected_spans=[[0, 1, float("nan")]]), ["row 2", "rejected_spans"]),
    "id beyond the vocabulary": (
        bad_row(chosen_weights={"ids": [9999, 1], "weights": [1, 1]}),
        ["row 2", "chosen_weights"],
    ),
    "broken JSON": (raw(b'{"prompt": "a", '), ["raw.jsonl", "line 1"]),
    "broken UTF-8": (raw(b'{"prompt": "\xff\xfe"}\n'), ["raw.jsonl", "UTF-8"]),
    "empty file": (raw(b""), ["raw.jsonl"]),
    "a step that does not fit": (["--max_length", "5"], ["row 0", "max_length"]),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_get_one_clear_message(
    case: str, world: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    find_spec = importlib.util.find_spec
    absent = ("deepspeed", "liger_kernel", "bitsandbytes")
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *a: None if name in absent else find_spec(name, *a),
    )
    made, words = MISTAKES[case]
    flags = made(world) if callable(made) else made
    given = yaml.safe_load((world / "run.yaml").read_text())
    flags = dict(zip(flags[::2], flags[1::2], strict=True))
    given = {f"--{name}": str(value) for name, value in given.items()} | flags
    assert main(["train", *[word for pair in given.items() for word in pair]]) == 2
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    message = [line for line in shown.splitlines() if line.startswith("prefkit: ")]
    assert len(message) == 1, shown
    assert all(word in message[0] for word in words), message[0]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["trian"], ["trian", "train"]),
        (["inspect"], ["inspect", "data"]),
        (["env", "--jsn"], ["'jsn'", "'json'"]),
        (["train"], ["model is missing"]),
        (["train", "nowhere.yaml"], ["nowhere.yaml"]),
    ],
)
def test_wrong_commands(argv: list[str], words: list[str], capsys: Any) -> None:
    assert main(argv) == 2
    shown = capsys.readouterr().err
    assert all(word in shown for word in words), shown
    assert "Traceback" not in shown


def test_the_words_around_a_run(world: Path, capsys: Any) -> None:
    bad = write_rows(world / "bad.jsonl", [{"prompt": "x", "chosen": "", "rejected": "y"}, ROWS[0]])
    flags = ["--train_data", bad, "--empty", "skip", "--max_steps", "1", "--save_steps", "1"]
    assert main(["train", str(world / "run.yaml"), *flags, "--margin", "0.5"]) == 0
    shown = capsys.readouterr()
    assert "Method     dpo: beta 0.1, margin 0.5\n" in shown.err
    assert "scored:" not in shown.err  # the log has told it
    assert "Trained 1 step in" in shown.out
    assert shown.out.count("skipped rows") == 1
    assert shown.out.count("step 1\n") == 1
    assert "step 1 " not in shown.out.replace("Trained 1 step in", "")
    again = ["--margin", "0.5", "--resume_from_checkpoint", "auto"]
    assert main(["train", str(world / "run.yaml"), *flags, *again]) == 0
    assert "finished at step 1 already: nothing was trained" in capsys.readouterr().out
    longer = [x if x != "1" or flags[i - 1] != "--max_steps" else "3" for i, x in enumerate(flags)]
    assert main(["train", str(world / "run.yaml"), *longer, *again]) == 0
    assert "Trained 2 steps (2 to 3)" in capsys.readouterr().out


CHANGES: dict[str, tuple[list[str], list[str], int]] = {
    "beta": (["--beta", "0.3"], ["beta", "0.1", "0.3"], 2),
    "method": (["--method", "tdpo2"], ["method", "'dpo'", "'tdpo2'"], 2),
    "seed": (["--seed", "7"], ["seed", "42", "7"], 2),
    "accumulation": (["--gradient_accumulation_steps", "2"], ["gradient_accumulation_steps"], 2),
    "batch": (["--per_device_train_batch_size", "2"], ["per_device_train_batch_size"], 2),
    "rate": (["--learning_rate", "1e-3"], ["learning_rate", "0.001"], 2),
    "optim": (["--optim", "sgd"], ["optim", "sgd"], 2),
    "adapter": (["--adapter", "lora"], ["adapter", "'none'", "'lora'"], 2),
    "dtype": (["--dtype", "bfloat16"], ["dtype"], 2),
    "its own default": (["--beta", "0.1", "--seed", "42"], [], 0),
    "logs": (["--logging_steps", "2"], ["Changed", "logging_steps 1 → 2"], 0),
}


@pytest.fixture(scope="module")
def stopped_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a checkpoint and a few steps to go."""
    folder = tmp_path_factory.mktemp("stopped")
    save_model(folder / "model")
    write_rows(folder / "rows.jsonl", ROWS)
    files = [f"--model={folder}/model", f"--train_data={folder}/rows.jsonl"]
    flags = [*files, f"--output_dir={folder}/out", "--learning_rate=1e-2", "--logging_steps=1"]
    flags += ["--save_steps=1", "--disable_tqdm"]
    assert main(["train", *flags, "--max_steps=1"]) == 0
    (folder / "flags").write_text("\n".join(flags))
    return folder


@pytest.mark.parametrize("case", CHANGES)
def test_a_run_goes_on_only_as_the_same_run(
    case: str, stopped_run: Path, tmp_path: Path, capsys: Any
) -> None:
    flags, words, code = CHANGES[case]
    out = tmp_path / "out"
    shutil.copytree(stopped_run / "out", out)
    before = (out / "prefkit_config.yaml").read_bytes()
    name = flags[0] + "="
    old = [x for x in (stopped_run / "flags").read_text().split("\n") if not x.startswith(name)]
    old = [x for x in old if not x.startswith("--output_dir=")]
    again = ["--max_steps=2", f"--output_dir={out}", "--resume_from_checkpoint=auto"]
    assert main(["train", *old, *flags, *again]) == code
    shown = capsys.readouterr().err
    assert all(word in shown for word in words), shown
    if code:
        assert (out / "prefkit_config.yaml").read_bytes() == before
    else:
        assert "max_steps 1 → 2" in shown


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--learning_rate", "1e38", "--save_steps", "1"], ["step 2", "checkpoint-1"]),
        (["--learning_rate", "1e38", "--logging_steps", "50"], ["to 4", "checkpoint is none"]),
    ],
)
def test_a_lost_loss_stops_the_run(
    flags: list[str], words: list[str], world: Path, capsys: Any
) -> None:
    assert main(["train", str(world / "run.yaml"), *flags]) == 1
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    assert all(word in shown for word in ["loss became nan", *words]), shown
    assert not (world / "out" / "model.safetensors").exists()


@pytest.mark.parametrize(("adapter", "said"), [("none", True), ("lora", False)])
def test_pure_bfloat16_is_warned_of(
    adapter: str, said: bool, world: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flags = ["--dtype", "bfloat16", "--adapter", adapter, "--max_steps", "1"]
    assert main(["train", str(world / "run.yaml"), *flags]) == 0
    assert ("--dtype float32 --bf16" in caplog.text) == said


def test_other_libraries_errors_are_one_line(
    world: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("first\nsecond")

    monkeypatch.setattr("prefkit.train.trainer.PreferenceTrainer.__init__", fails)
    for shown in ("", "1"):
        monkeypatch.setenv("PREFKIT_TRACEBACK", shown)
        assert main(["train", str(world / "run.yaml")]) == 2
        printed = capsys.readouterr().err
        assert "prefkit: RuntimeError: first" in printed
        assert ("Traceback" in printed) == bool(shown)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line(world: Path) -> None:
    argv = ["inspect", str(world / "rows.jsonl"), "--model", str(world / "model"), "--json"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "prefkit.cli.main", *argv],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "No space left" in done.stderr


def test_example_script_without_its_file() -> None:
    script = str(ROOT / "examples" / "gsm8k_pairs.py")
    done = subprocess.run([sys.executable, script, "nope.jsonl"], capture_output=True, text=True)
    assert done.returncode != 0
    assert len(done.stderr.splitlines()) == 1
    assert "nope.jsonl" in done.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda p: p.stem)
def test_examples_need_only_model_and_data(path: Path, world: Path) -> None:
    given = yaml.safe_load(path.read_text())
    assert not {"eval_data", "eval_strategy"} & set(given)


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize("name", ["dpo", "tdpo2", "lora"])
def test_a_real_model_on_real_pairs(
    name: str, smollm2: Path, shared_data: Path, tmp_path: Path, capsys: Any
) -> None:
    """Two steps of SmolLM2-135M from the example configs, on pairs the example script makes."""
    solutions = shared_data / "gsm8k" / "model_solutions.jsonl"
    script = ROOT / "examples" / "gsm8k_pairs.py"
    folder = tmp_path / "pairs"
    subprocess.run([sys.executable, script, solutions, "--out", folder], check=True)
    options = {
        "model": smollm2,
        "train_data": folder / "naive.jsonl",
        "eval_data": folder / "naive_eval.jsonl",
        "output_dir": tmp_path / "out",
        "max_steps": 2,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "max_length": 192,
        "eval_strategy": "no",
        "logging_steps": 1,
        "learning_rate": 1e-3 if name == "lora" else 1e-5,
        "warmup_steps": 0,
        "save_strategy": "no",
    }
    flags = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    assert main(["train", str(ROOT / "examples" / f"{name}.yaml"), *flags]) == 0
    history = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    losses = [line["loss"] for line in history if "loss" in line]
    assert losses[0] == pytest.approx(0.693, abs=1e-3)
    assert losses[1] != losses[0]
