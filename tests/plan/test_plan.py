"""`prefkit plan`: what it counts, what it refuses, what it prints."""

import json
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from benchmarks.plan_vs_measured import CASES, measure, predict
from prefkit.cli.main import main
from prefkit.cli.plan import plan_arguments
from prefkit.errors import ConfigError, ModelError
from prefkit.plan.costs import memory as memory_module
from prefkit.plan.costs.body import BodyRun, trace_body
from prefkit.plan.costs.head import head_bytes
from prefkit.plan.inputs.launcher import read_launcher
from prefkit.plan.inputs.lengths import given_lengths
from prefkit.plan.inputs.meta_model import Lora
from prefkit.plan.inputs.setting import parse_bytes
from prefkit.plan.inputs.shape import load_config, read_shape
from prefkit.plan.planning import Plan
from prefkit.plan.table import plan_table, readable
from tests.train.trainer_cases import CONFIGS, tiny_model

LLAMA = str(Path(__file__).parents[2] / "examples" / "70b" / "llama-3-70b" / "config.json")
SMALL = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 1000,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 1,
}


def small(folder: Path, **changes: Any) -> str:
    file = folder / "config.json"
    file.write_text(json.dumps({**SMALL, **changes}), encoding="utf-8")
    return str(file)


def planned(folder: Path, *words: str, lengths: str = "600,200,200", **own: Any) -> Plan:
    plan, _ = plan_arguments({"lengths": lengths, **own}, ["--model", small(folder), *words])
    return plan


# -- what a model is made of ----------------------------------------------------------------------


@pytest.mark.parametrize("family", CONFIGS)
def test_parameters_are_those_of_the_real_model(family: str) -> None:
    model = tiny_model(family)
    shape = read_shape(family, model.config)
    assert shape.total == sum(p.numel() for p in model.parameters())
    assert shape.tied == (model.lm_head.weight is model.get_input_embeddings().weight)
    assert (shape.vocab, shape.hidden) == model.lm_head.weight.shape


def test_an_adapter_is_counted_as_peft_makes_it() -> None:
    from peft import LoraConfig, get_peft_model

    model = tiny_model("llama")
    shape = read_shape("tiny", model.config, Lora(4, 8, 0.0, "all-linear"))
    made = get_peft_model(
        model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    assert shape.adapter == sum(p.numel() for p in made.parameters() if p.requires_grad)


def test_70b_sizes() -> None:
    shape = read_shape("70B", load_config(LLAMA))
    assert shape.total == 70_553_706_496
    assert shape.layer == 855_654_400


def test_what_limits_a_row_is_the_models_scaling_and_no_window() -> None:
    scaling = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [3.0] * 4}
    config = AutoConfig.for_model(
        "phi3",
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=64,
        pad_token_id=0,
        sliding_window=8,
        original_max_position_embeddings=24,
        rope_parameters={**scaling, "rope_theta": 1e4},
    )
    assert read_shape("scaled", config).row_limit == 24
    config.rope_parameters = {"rope_type": "default", "rope_theta": 1e4}
    assert read_shape("windowed", config).row_limit is None


# -- what a body keeps ----------------------------------------------------------------------------


def test_a_layer_keeps_what_its_formula_says() -> None:
    """A Llama layer in fp32: two norms, their results, q, k, v, attention, four of the MLP."""
    config = AutoConfig.for_model(**SMALL)
    tokens, wide, narrow, heads = 512, 8 * 32, 2 * 32, 8
    body = trace_body(config, BodyRun(dtype=torch.float32), 3, tokens)
    numbers = 6 * 256 + 4 * 704 + 2 * wide + 2 * narrow + heads
    norms = 2  # 1/rms of two norms
    assert body.layer == pytest.approx(4 * tokens * (numbers + norms), rel=1e-3)


def test_a_checkpointed_layer_keeps_its_input() -> None:
    config = AutoConfig.for_model(**SMALL)
    run = BodyRun(dtype=torch.bfloat16, checkpointing=True)
    whole = trace_body(config, replace(run, checkpointing=False), 8, 512)
    body = trace_body(config, run, 8, 512)
    assert body.layer == pytest.approx(512 * 256 * 2, rel=0.01)
    assert body.backward < 0.5 * whole.backward
    gone = body.offloaded(8)
    assert gone.held == body.held - 8 * body.layer


def test_autocast_copies_of_weights_are_seen_at_the_head() -> None:
    config = AutoConfig.for_model(**SMALL)
    run = BodyRun(dtype=torch.float32, autocast=torch.bfloat16, checkpointing=True)
    body, shape = trace_body(config, run, 3, 64), read_shape("small", config)
    copies = 3 * 2 * (shape.layer - 2 * 256)  # bf16 of all but the norms
    assert body.at_head - body.held == pytest.approx(copies, rel=0.02)


# -- lengths --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lengths", "size", "most"),
    [("16000,8000,8000", 8, 4000), ("30000,1384,1384", 8, 2768), ("16000,8000,8000", 1, 16000)],
)
def test_a_piece_of_a_row_may_hold_nothing_but_scored_tokens(
    lengths: str, size: int, most: int
) -> None:
    """What is scored lies at the row's end, not spread over the processes that share it."""
    own = {"lengths": lengths, "gpus": 8}
    words = ["--model", LLAMA, "--bf16", "--dtype", "bfloat16", "--fsdp", "true"]
    words += ["--gradient_checkpointing", "--sequence_parallel_size", str(size)]
    plan, _ = plan_arguments(own, [*words, "--per_device_train_batch_size", "1"])
    assert plan.heaviest.worst_piece(size) == (-(-plan.heaviest.tokens // size), most)
    assert plan.memory.head == head_bytes(plan.shape, plan.setting, most, 1)


@pytest.mark.parametrize("sides", ["auto", "separate"])
def test_dropout_that_stays_on_makes_padded_rows(sides: str, tmp_path: Path) -> None:
    words = ["--disable_dropout", "false", "--layout", sides]
    plan = planned(tmp_path, *words, lengths="600,200,100")
    assert plan.layout == "padded"
    assert (plan.heaviest.rows, plan.heaviest.length) == (2 * plan.setting.pairs, 800)
    assert any("disable_dropout is off" in note for note in plan.notes)


def test_what_training_refuses_of_padded_rows_is_refused(tmp_path: Path) -> None:
    words = ["--disable_dropout", "false"]
    for layout in ("tree", "shared"):
        with pytest.raises(ModelError, match=f"layout: {layout} cannot be had: disable_dropout"):
            planned(tmp_path, *words, "--layout", layout)
    with pytest.raises(ConfigError, match="sequence_parallel_size needs rows without padding"):
        planned(tmp_path, *words, "--sequence_parallel_size", "2", gpus=2)
    tight = planned(tmp_path, *words, "--fsdp", "true", gpus=2, gpu_memory="1MB")
    assert not any("sequence_parallel_size" in advice.change for advice in tight.advice)


@pytest.mark.parametrize("text", ["1,2", "a,b,c", "5,0,0", "1,2,-3"])
def test_lengths_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="lengths"):
        given_lengths(text)


def test_rows_of_a_budget(tmp_path: Path) -> None:
    plan = planned(tmp_path, "--tokens_per_batch", "3500")
    assert plan.heaviest.pairs == 3
    assert plan.heaviest.tokens == 3000
    separate = planned(tmp_path, "--tokens_per_batch", "3500", "--layout", "separate")
    assert (separate.heaviest.pairs, separate.heaviest.tokens) == (2, 3200)
    with pytest.raises(ConfigError, match="tokens_per_batch"):
        planned(tmp_path, "--tokens_per_batch", "900")


# -- memory and work ------------------------------------------------------------------------------


def test_the_head_of_70b_as_in_the_documentation(tmp_path: Path) -> None:
    """docs/kernels.md, "Held": 16,384 tokens in bf16."""
    shape = read_shape("70B", load_config(LLAMA))
    words = ["--bf16", "--dtype", "bfloat16", "--per_device_train_batch_size", "1"]
    plan, _ = plan_arguments(
        {"lengths": "1,1,1", "gpus": 64}, ["--model", LLAMA, "--fsdp", "true", *words]
    )
    kept = head_bytes(shape, plan.setting, 16384, 1)
    assert kept.passes == "keep_dz"
    assert kept.d_weight == pytest.approx(4.2e9, rel=0.01)
    assert head_bytes(shape, plan.setting, 16385, 1).passes == "one_pass"
    assert head_bytes(shape, plan.setting, 16385, 2).passes == "two_pass"
    few = head_bytes(shape, plan.setting, 64, 8)
    assert few.passes == "keep_dz"
    assert few.held + few.buffers < 0.1e9
    one = head_bytes(shape, replace(plan.setting, passes="one_pass"), 16384, 1)
    assert one.passes == "one_pass"
    assert one.d_weight == pytest.approx(4.2e9, rel=0.01)
    assert one.d_hidden == pytest.approx(0.54e9, rel=0.01)
    assert 0.9 * 2**31 < one.buffers <= 2**31
    words += ["--adapter", "lora"]
    plan, _ = plan_arguments({"lengths": "1,1,1", "gpus": 64}, ["--model", LLAMA, *words])
    frozen = head_bytes(shape, plan.setting, 16384, 1)
    assert 0.9 * 2**30 < frozen.buffers <= 2**30
    plan, _ = plan_arguments(
        {"lengths": "1,1,1", "gpus": 64}, ["--model", LLAMA, "--fsdp", "true", *words[:-2]]
    )
    two = head_bytes(shape, replace(plan.setting, passes="two_pass"), 16384, 1)
    assert two.d_weight == 0
    assert two.grad == one.grad == pytest.approx(2.1e9, rel=0.01)
    assert two.forward < one.forward - 4e9
    assert two.forward < kept.forward - 4e9


def test_states_are_counted_by_what_trains(tmp_path: Path) -> None:
    full = planned(tmp_path)
    parts = next(m for m in full.memory.moments if m.name == "optimiser").parts
    assert parts["parameters"] == parts["gradients"] == parts["reference"] == 4 * full.shape.total
    assert parts["optimiser states"] == 8 * full.shape.total
    lora = planned(tmp_path, "--adapter", "lora", "--dtype", "bfloat16")
    parts = next(m for m in lora.memory.moments if m.name == "optimiser").parts
    assert "reference" not in parts
    assert parts["optimiser states"] == 8 * lora.shape.adapter
    assert parts["parameters"] == 2 * lora.shape.total + 4 * lora.shape.adapter


def test_a_share_each_under_fsdp(tmp_path: Path) -> None:
    words = ["--fsdp", "true", "--dtype", "bfloat16", "--bf16"]
    plan = planned(tmp_path, *words, gpus=4)
    parts = next(m for m in plan.memory.moments if m.name == "optimiser").parts
    total = plan.shape.total
    assert parts["parameters"] == 4 * total / 4  # raised to fp32
    assert parts["optimiser states"] == 8 * total / 4
    assert parts["reference"] == 2 * total / 4


def test_work_is_six_operations_a_parameter_and_token(tmp_path: Path) -> None:
    plan = planned(tmp_path, "--gradient_accumulation_steps", "3", gpus=2)
    shape, work = plan.shape, plan.work
    assert work.pairs == 4 * 3 * 2
    assert work.tokens == 24 * 1000
    assert work.body == 6 * shape.layers * shape.layer * work.tokens
    again = planned(tmp_path, "--gradient_checkpointing")
    assert again.work.recomputation == pytest.approx((again.work.body + again.work.attention) / 3)
    frozen = planned(tmp_path, "--adapter", "lora")
    shape, work = frozen.shape, frozen.work
    assert work.body == (4 * shape.layers * shape.layer + 6 * shape.adapter) * work.tokens


def test_the_moments_of_a_step_are_as_many_as_the_documentation_says(tmp_path: Path) -> None:
    plan = planned(tmp_path, "--gradient_accumulation_steps", "2")
    assert len(plan.memory.moments) == 7
    page = (Path(__file__).parents[2] / "docs" / "plan.md").read_text(encoding="utf-8")
    for text in (page, str(memory_module.__doc__)):
        assert "seven moments" in text


def test_what_to_change_is_worth_what_it_says(tmp_path: Path) -> None:
    words = ["--layout", "separate", "--per_device_train_batch_size", "1"]
    tight = planned(tmp_path, *words, gpu_memory="60MB")
    assert not tight.fits
    changes = {advice.change.split(":")[0]: advice for advice in tight.advice}
    assert list(changes)[:2] == ["layout", "precompute_ref_log_probs"]
    shared = planned(tmp_path, "--layout", "shared", *words[2:], gpu_memory="60MB")
    assert changes["layout"].saves == pytest.approx(tight.need - shared.need)
    assert any("lora" in advice.change for advice in tight.advice)
    assert planned(tmp_path, *words).advice == []


def test_a_model_without_room_for_replicas_is_planned_with_fsdp() -> None:
    own = {"lengths": "1000,100,100", "gpus": 64, "gpu_memory": "80GB"}
    words = ["--model", LLAMA, "--bf16", "--dtype", "bfloat16", "--gradient_checkpointing"]
    plan, _ = plan_arguments(own, [*words, "--per_device_train_batch_size", "1"])
    assert plan.setting.sharding == "fsdp2"
    assert "--fsdp_version 2" in plan.command
    assert "--fsdp_activation_checkpointing true" in plan.command
    assert "on each of 8 machines" in plan.command


@pytest.mark.parametrize(
    ("gpus", "machines", "each"), [(8, 1, 8), (10, 2, 5), (12, 2, 6), (16, 2, 8), (36, 6, 6)]
)
def test_the_command_starts_as_many_processes_as_were_planned(
    gpus: int, machines: int, each: int, tmp_path: Path
) -> None:
    command = planned(tmp_path, gpus=gpus).command
    assert f"--nproc_per_node {each} " in command
    assert (f"--nnodes {machines} " in command) == (machines > 1)
    assert gpus == machines * each


def test_gpus_that_no_equal_machines_have_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--gpus 8 or 16"):
        planned(tmp_path, gpus=13)
    on_a_cpu = planned(tmp_path, "--use_cpu", "true", gpus=13)
    assert "--nproc_per_node 13 " in on_a_cpu.command


def test_processes_that_share_rows_hold_a_piece_each(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"model: {small(tmp_path)}\nsequence_parallel_size: 4\n", encoding="utf-8")
    own = {"lengths": "600,200,200", "gpus": 8}
    plan, _ = plan_arguments(own, [str(file)])
    alone, _ = plan_arguments(own, [str(file), "--sequence_parallel_size", "1"])
    assert plan.setting.sequence_parallel == 4
    assert plan.work.pairs == alone.work.pairs
    kept = [
        next(m for m in p.memory.moments if m.name.startswith("first")).parts["activations"]
        for p in (plan, alone)
    ]
    assert kept[0] == pytest.approx(kept[1] / 4, rel=0.01)
    with pytest.raises(ConfigError, match="and this run has 6 process"):
        plan_arguments({**own, "gpus": 6}, [str(file)])


# -- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "bytes_"), [("80GB", 80 * 10**9), ("64GiB", 64 * 2**30), ("1.5 tb", 15 * 10**11)]
)
def test_sizes(size: str, bytes_: int) -> None:
    assert parse_bytes(size) == bytes_


@pytest.mark.parametrize("size", ["", "GB", "80 apples", "0GB", "1.2.3GB", "-5GB"])
def test_sizes_that_are_none(size: str) -> None:
    with pytest.raises(ConfigError, match="gpu_memory"):
        parse_bytes(size)


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="positions"):
        planned(tmp_path, lengths="5000,10,10")
    with pytest.raises(ConfigError, match="--lengths 16000,8000,8000"):
        plan_arguments({}, ["--model", small(tmp_path), "--train_data", "x.jsonl"])
    with pytest.raises(ConfigError, match="FSDP2"):
        planned(tmp_path, exact=True)
    with pytest.raises(ModelError, match="there is no folder"):
        plan_arguments({"lengths": "1,1,1"}, ["--model", str(tmp_path / "nothing")])
    other = tmp_path / "fsdp1.yaml"
    other.write_text("distributed_type: FSDP\nfsdp_config: {fsdp_version: 1}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="fsdp_version must be 2"):
        read_launcher(str(other))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--gpus", "0"], "gpus"),
        (["--gpus", "two"], "gpus"),
        (["--lengths"], "lengths needs a value: --lengths VALUE"),
        (["--json", "maybe"], "json is 'maybe'; it must be true or false"),
        (["--gpu_memory", "much"], "gpu_memory"),
        (["--nonsense", "1"], "no option 'nonsense'"),
    ],
)
def test_wrong_flags(
    words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lengths = [] if "--lengths" in words else ["--lengths", "5,5,5"]
    assert main(["plan", "--model", small(tmp_path), *lengths, *words]) == 2
    assert told in capsys.readouterr().err


# -- the command ----------------------------------------------------------------------------------


def test_the_table_and_the_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "--model", small(tmp_path), "--lengths", "600,200,200", "--gpu_memory", "1GB"]
    assert main(words) == 0
    table = capsys.readouterr().out
    for part in ("Memory of one process", "optimiser states", "slack (assumed", "It fits", "38%"):
        assert part in table
    assert "prefkit train --model FOLDER_WITH_WEIGHTS" in table
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] is True
    assert found["sharing"] == pytest.approx(1.6)
    parts = next(m for m in found["moments"] if m["name"] == found["peak"]["name"])
    assert sum(parts["parts"].values()) == pytest.approx(found["peak"]["bytes"])


@pytest.mark.parametrize(
    ("size", "told"),
    [
        (80e9, "80.00 GB"),
        (1.5e9, "1.50 GB"),
        (2.5e6, "2.5 MB"),
        (9e8, "900.0 MB"),
        (4e4, "40.0 kB"),
    ],
)
def test_bytes_are_readable(size: float, told: str) -> None:
    assert readable(size) == told


def test_a_tiny_model_has_a_table_without_zeros(tmp_path: Path) -> None:
    table = plan_table(planned(tmp_path, gpu_memory="60MB"))
    assert " 0.00 GB" not in table
    assert " 0.0 kB" not in table
    assert " MB" in table


def test_a_gpu_that_is_not_there_is_called_supposed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    table = plan_table(planned(tmp_path))
    assert "; 1 process\n" in table
    assert "80.00 GB of one GPU (supposed)" in table
    assert "--gpu_memory" in table
    assert "; 2 processes, a replica each" in plan_table(planned(tmp_path, gpus=2))
    assert "; 1 GPU\n" in plan_table(planned(tmp_path, gpu_memory="80GB"))
    assert "; 2 processes on a CPU," in plan_table(planned(tmp_path, "--use_cpu", "true", gpus=2))


def test_help_and_overview(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--help"]) == 0
    assert "--accelerate_config" in capsys.readouterr().out
    assert main(["--help"]) == 0
    assert "plan CONFIG.yaml" in capsys.readouterr().out


def test_it_takes_little_more_than_importing_what_it_plans_with() -> None:
    """Core seconds beside those of the imports alone; a busy machine may try twice.

    Five seconds in all where the imports take four.
    """
    command = [sys.executable, "-m", "prefkit", "plan", "--model", LLAMA, "--bf16"]
    command += ["--dtype", "bfloat16", "--gradient_checkpointing", "--fsdp", "true"]
    command += ["--lengths", "16000,8000,8000", "--gpus", "64", "--gpu_memory", "400GB"]
    imports = "import torch; from transformers import AutoModelForCausalLM, Trainer"
    importing = _core_seconds([sys.executable, "-c", imports])
    assert any(_core_seconds(command) <= 1.5 * importing for _ in range(2))


def _core_seconds(command: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    subprocess.run(command, check=True, capture_output=True)
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before


# -- against measured runs ------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dpo", "lora"])
def test_measured_on_a_cpu(name: str) -> None:
    """With a third of the tokens and in fp32 (bf16 takes a CPU without instructions for it 100 s);
    all six cases whole: python -m benchmarks.plan_vs_measured."""
    case = replace(CASES[name], options={**CASES[name].options, "dtype": "float32"})
    prefix, chosen, rejected = (length // 3 for length in case.lengths)
    case = replace(case, lengths=(prefix, chosen, rejected))
    measured = measure(case)
    assert measured > 300e6
    assert predict(case).memory.peak.total == pytest.approx(measured, rel=0.2)
