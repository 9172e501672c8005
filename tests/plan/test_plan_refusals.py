"""`prefkit plan`: mistakes and strange files, each answered in one line that names the remedy."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from prefkit.cli.main import main
from prefkit.cli.plan import plan_arguments
from prefkit.errors import ConfigError, ModelError
from prefkit.plan.inputs.launcher import read_launcher, zero_stage
from prefkit.plan.inputs.setting import parse_bytes
from tests.plan.test_plan import small

EXAMPLES = Path(__file__).parents[2] / "examples"


def plan(folder: Path, *words: str, **own: Any) -> Any:
    own = {"lengths": "600,200,200", **own}
    return plan_arguments(own, ["--model", small(folder), *words])[0]


def refusal(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a refused plan."""
    assert main(["plan", *words]) == 2
    found = capsys.readouterr().err.strip()
    assert len(found.splitlines()) == 1, found
    return found


# -- models ---------------------------------------------------------------------------------------


def test_a_model_without_attention(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "config.json"
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 100}
    file.write_text(json.dumps({"model_type": "mamba", **sizes}), encoding="utf-8")
    told = refusal(["--model", str(file), "--lengths", "5,5,5"], capsys)
    assert "a mamba has no attention heads" in told


def test_experts_are_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = small(tmp_path, model_type="mixtral", num_local_experts=4, num_experts_per_tok=2)
    told = refusal(["--model", file, "--lengths", "5,5,5"], capsys)
    assert "a mixtral routes tokens to 4 experts by their data" in told


def test_a_model_that_is_not_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lengths = ["--lengths", "5,5,5"]
    started = time.perf_counter()
    told = refusal(["--model", "nobody/nofolder", *lengths], capsys)
    assert "no config of the name nobody/nofolder on this machine. Download it first" in told
    assert time.perf_counter() - started < 15  # no retries over a network
    missing = str(tmp_path / "nothing")
    assert f"model: there is no folder {missing}" in refusal(["--model", missing, *lengths], capsys)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--head_passes", "one_pass", "--nll_weight", "0.2"], "nll_weight adds a term"),
        (["--head_passes", "one_pass", "--reduction", "position"], "a margin for every position"),
        (
            ["--head_passes", "keep_dz", "--method", "tdpo2", "--token_weights", "confpo"],
            "token_weights are made of what the pass computes",
        ),
        (["--head_passes", "one_pass", "--per_device_train_batch_size", "2"], "takes one pair"),
    ],
)
def test_passes_that_training_would_refuse(
    words: list[str], why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = refusal(["--model", small(tmp_path), "--lengths", "5,5,5", *words], capsys)
    assert f"head_passes is {words[1]}, which cannot compute this loss" in told
    assert why in told


# -- launchers ------------------------------------------------------------------------------------


def test_a_launcher_of_more_machines_than_planned(tmp_path: Path) -> None:
    """accelerate divides --num_processes by the machines of its file: 8 / 8 = 1 a machine."""
    file = str(EXAMPLES / "70b" / "accelerate" / "fsdp2-64gpu.yaml")
    one = plan(tmp_path, gpus=8, accelerate_config=file).command
    assert "--num_processes 8 --num_machines 1 --machine_rank 0" in one
    many = plan(tmp_path, gpus=64, accelerate_config=file).command
    assert "--num_machines 8 --machine_rank $RANK" in many
    alone = plan(tmp_path, gpus=1, accelerate_config=file).command
    assert alone.startswith("accelerate launch")  # or nothing would shard


def deepspeed_launcher(folder: Path, **settings: Any) -> str:
    file = folder / "accelerate.yaml"  # JSON is YAML
    content = {"distributed_type": "DEEPSPEED", "num_processes": 4, "deepspeed_config": settings}
    file.write_text(json.dumps(content), encoding="utf-8")
    return str(file)


def test_the_stage_of_a_deepspeed_file(tmp_path: Path) -> None:
    stage = {"deepspeed_config_file": str(EXAMPLES / "accelerate" / "zero3.json")}
    found = plan(tmp_path, accelerate_config=deepspeed_launcher(tmp_path, **stage))
    assert (found.setting.sharding, found.setting.gpus) == ("zero3", 4)
    assert read_launcher(deepspeed_launcher(tmp_path, zero_stage=3))["zero_stage"] == 3
    assert zero_stage({"zero_optimization": {"stage": 3}}) == 3
    assert zero_stage({"train_batch_size": "auto"}) == 0


@pytest.mark.parametrize("settings", [{"zero_stage": 1}, {"zero_stage": 2}, {}])
def test_stages_that_are_not_planned(settings: dict[str, Any], tmp_path: Path) -> None:
    stage = settings.get("zero_stage", 2)
    with pytest.raises(ConfigError, match=f"ZeRO stage {stage} is not planned"):
        read_launcher(deepspeed_launcher(tmp_path, **settings))
    with pytest.raises(ConfigError, match=f"deepspeed: ZeRO stage {stage} is not planned"):
        zero_stage({"zero_optimization": {"stage": stage}})


def test_a_deepspeed_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"deepspeed: there is no config file .*none\.json"):
        zero_stage(str(tmp_path / "none.json"))
    broken = tmp_path / "broken.json"
    broken.write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"broken\.json cannot be read as JSON"):
        zero_stage(str(broken))


def test_a_file_that_is_no_config_of_accelerate(tmp_path: Path) -> None:
    zero3 = str(EXAMPLES / "accelerate" / "zero3.json")
    with pytest.raises(ConfigError, match=rf"no distributed_type.* --deepspeed {zero3}"):
        read_launcher(zero3)
    other = tmp_path / "other.yaml"
    other.write_text("model: x\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"no distributed_type.*accelerate config"):
        read_launcher(str(other))


def test_the_mixed_precision_that_was_asked_for(tmp_path: Path) -> None:
    words = ["--fsdp", "true", "--fp16", "true"]
    assert "--mixed_precision fp16" in plan(tmp_path, *words, gpus=64).command
    words[2:] = ["--bf16", "true"]
    assert "--mixed_precision bf16" in plan(tmp_path, *words, gpus=64).command
    assert "--mixed_precision no" in plan(tmp_path, *words[:2], gpus=64).command


# -- what training refuses ------------------------------------------------------------------------


def test_rows_that_cannot_be_shared_by_processes(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="8 attention heads cannot be shared out over 3"):
        plan(tmp_path, "--sequence_parallel_size", "3", gpus=3)
    with pytest.raises(ConfigError, match="reduction 'position'"):
        plan(tmp_path, "--sequence_parallel_size", "2", "--reduction", "position", gpus=2)
    launcher = deepspeed_launcher(tmp_path, zero_stage=3)
    with pytest.raises(ConfigError, match="sequence_parallel_size and deepspeed"):
        plan(tmp_path, "--sequence_parallel_size", "2", accelerate_config=launcher)


def test_fsdp_needs_several_processes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"fsdp shards a model over several.*--gpus"):
        plan(tmp_path, "--fsdp", "true")
    assert plan(tmp_path, "--fsdp", "true", gpus=2).setting.sharding == "fsdp2"


def test_lengths_beyond_max_length(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="800 tokens is longer than max_length 799"):
        plan(tmp_path, "--max_length", "799")
    assert plan(tmp_path, "--max_length", "800").lengths.longest == 800


# -- flags ----------------------------------------------------------------------------------------


def test_a_size_without_its_unit() -> None:
    with pytest.raises(ConfigError, match=r"80 bytes\. Did you mean 80GB"):
        parse_bytes("80")
    with pytest.raises(ConfigError, match=r"500,000 bytes\. Give a size"):
        parse_bytes("500KB")
    assert parse_bytes("1MB") == parse_bytes("1000000") == 10**6


def test_flags_of_this_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", small(tmp_path), "--lengths", "5,5,5"]
    assert "Did you mean 'gpus'?" in refusal([*words, "--gpu", "4"], capsys)
    assert "`prefkit plan --help`" in refusal([*words, "--zzzzzz", "4"], capsys)
    assert "Did you mean 'beta'?" in refusal([*words, "--betta", "4"], capsys)
    file = tmp_path / "run.yaml"
    file.write_text("gpus: 8\n", encoding="utf-8")
    told = refusal([str(file), *words], capsys)
    assert f"{file}: there is no option 'gpus'." in told
    assert "It is a flag of `prefkit plan`: give it as --gpus." in told


def test_data_that_is_not_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = refusal(["--model", small(tmp_path)], capsys)
    assert "train_data is missing" in told
    assert "--lengths 16000,8000,8000" in told
    assert plan(tmp_path).command.endswith("--train_data PAIRS.jsonl")
    named = plan(tmp_path, "--train_data", "mine.jsonl").command
    assert named.count("--train_data") == 1
    assert "mine.jsonl" in named


# -- runs that can be made and not planned --------------------------------------------------------


NOT_PLANNED = {
    "4 bits": (
        ["--load_in_4bit", "true", "--adapter", "lora"],
        "load_in_4bit: memory of quantised",
    ),
    "8 bits": (["--load_in_8bit", "true", "--use_peft", "true"], "takes 1 byte less"),
    "modules in full": (
        ["--adapter", "lora", "--lora_modules_to_save", "embed_tokens"],
        "lora_modules_to_save: the copies that train in full are not planned",
    ),
}


@pytest.mark.parametrize("case", NOT_PLANNED)
def test_what_is_not_planned_is_said(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags, words = NOT_PLANNED[case]
    model = ["--model", small(tmp_path), "--lengths", "5,5,5"]
    assert words in refusal([*model, *flags], capsys)


def test_an_adapter_is_planned_by_its_base(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "the/base"}')
    told = refusal(["--model", str(tmp_path), "--lengths", "5,5,5"], capsys)
    assert "--model the/base --adapter lora --lora_r R" in told


def test_dora_has_more_to_train(tmp_path: Path) -> None:
    lora = plan(tmp_path, "--adapter", "lora").shape.adapter
    assert plan(tmp_path, "--adapter", "lora", "--use_dora", "true").shape.adapter > lora
