"""Options: what they build, how YAML and flags become them, and every mistake in them."""

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import TrainingArguments

from prefkit import DPO, TDPO, PreferenceConfig, SimPO
from prefkit.cli.train import COMMAND, load_options
from prefkit.convert.hints import HINTS
from prefkit.errors import ConfigError
from prefkit.options.option import field_docs
from prefkit.options.parse import split
from prefkit.options.values import coerce
from prefkit.train.common import CommonFields
from prefkit.train.fields import PreferenceFields, ScriptArguments

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))
NEEDED = ["--model", "m", "--train_data", "d.jsonl"]


def test_objectives() -> None:
    assert PreferenceConfig(method="dpo").build_objective() == DPO(beta=0.1)
    assert PreferenceConfig(method="step-dpo").build_objective() == DPO(beta=0.4)
    assert PreferenceConfig(method="scdpo", beta=0.5).build_objective() == DPO(beta=0.5)
    assert PreferenceConfig(method="cdpo").build_objective() == DPO(beta=1.0)
    position = PreferenceConfig(method="cdpo", reduction="position", positions_per_pair=9)
    assert position.build_objective() == DPO(beta=0.1, reduction="position", positions_per_pair=9)
    assert PreferenceConfig(method="tdpo1").build_objective() == TDPO(beta=0.1, variant="tdpo1")
    tdpo = PreferenceConfig(method="tdpo2", alpha=0.7, beta=0.2).build_objective()
    assert tdpo == TDPO(beta=0.2, alpha=0.7, variant="tdpo2")
    simpo = PreferenceConfig(method="simpo", margin=0.3).build_objective()
    assert simpo == SimPO(beta=2.0, margin=0.3)
    full = PreferenceConfig(link="robust", label_smoothing=0.1, nll_weight=0.2, margin=0.3)
    assert full.build_objective() == DPO(
        link="robust", label_smoothing=0.1, nll_weight=0.2, margin=0.3
    )


def test_levels_and_defaults() -> None:
    assert PreferenceConfig(method="step-dpo").resolved_level == "step"
    assert PreferenceConfig(method="scdpo").resolved_level == "solution"
    assert PreferenceConfig(method="scdpo", level="step").resolved_level == "step"
    plain = PreferenceConfig()
    assert plain.output_dir == "prefkit-output/dpo"
    assert plain.learning_rate == 1e-6
    assert not plain.bf16
    assert plain.report_to == []
    assert not plain.remove_unused_columns


def test_liger_serves_the_body_and_leaves_the_head_alone(tmp_path: Path) -> None:
    """Its fused loss replaces the forward that the fused head lives in."""
    options = {"output_dir": str(tmp_path), "use_liger_kernel": True}
    config = PreferenceConfig(**options, liger_kernel_config={"rms_norm": True})
    off = {"fused_linear_cross_entropy": False, "cross_entropy": False}
    assert config.liger_kernel_config == {"rms_norm": True, **off}
    with pytest.raises(ConfigError, match="replaces the head"):
        PreferenceConfig(**options, liger_kernel_config={"fused_linear_cross_entropy": True})


def test_every_own_field_is_documented() -> None:
    for cls in (PreferenceFields, ScriptArguments):
        docs = field_docs(cls)
        for field in fields(cls):
            assert len(docs.get(field.name, "")) > 10, field.name


def test_what_the_help_shows_of_transformers_is_as_it_is_there() -> None:
    theirs = {field.name: field.default for field in fields(TrainingArguments)}
    for field in fields(CommonFields):
        assert (theirs[field.name] or None) == (field.default or None), field.name


BAD_OPTIONS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "text for a switch": ({"reference_free": "false"}, ["reference_free", "true or false"]),
    "number for text": ({"system_prompt": 3}, ["system_prompt", "text"]),
    "format": ({"format": "bogus"}, ["format", "step-dpo"]),
    "block style": ({"block_style": "bogus"}, ["block_style", "tagged"]),
    "method": ({"method": "ddpo"}, ["method", "tdpo2"]),
    "beta zero": ({"beta": 0.0}, ["beta", "positive"]),
    "beta nan": ({"beta": float("nan")}, ["beta"]),
    "alpha negative": ({"method": "tdpo2", "alpha": -1.0}, ["alpha"]),
    "alpha without tdpo2": ({"alpha": 0.5}, ["alpha", "no effect", "dpo"]),
    "alpha with tdpo1": ({"method": "tdpo1", "alpha": 0.5}, ["alpha", "tdpo1"]),
    "link with tdpo": ({"method": "tdpo2", "link": "ipo"}, ["link", "no effect"]),
    "margin with tdpo": ({"method": "tdpo2", "margin": 1.0}, ["margin"]),
    "nll with simpo": ({"method": "simpo", "nll_weight": 1.0}, ["nll_weight"]),
    "label smoothing 0.5": ({"label_smoothing": 0.5}, ["label_smoothing", "0.5"]),
    "smoothing with hinge": ({"link": "hinge", "label_smoothing": 0.1}, ["hinge"]),
    "ipo with margin": ({"link": "ipo", "margin": 1.0}, ["margin"]),
    "position with ipo": ({"link": "ipo", "reduction": "position"}, ["position"]),
    "loss_type": ({"loss_type": "bco"}, ["loss_type", "one of bco_pair, "]),
    "two losses by two names": ({"loss_type": "ipo", "link": "hinge"}, ["link", "loss_type"]),
    "weights without losses": ({"loss_weights": [1.0, 2.0]}, ["loss_weights", "2 numbers"]),
    "loss_type with simpo": ({"method": "simpo", "loss_type": "ipo"}, ["loss_type", "cdpo"]),
    "divergence of dpop": (
        {"method": "dpop", "f_divergence_type": "forward_kl"},
        ["f_divergence_type", "no effect", "step-dpo"],
    ),
    "a hook": ({"token_weights": "confp"}, ["token_weights", "one of confpo, "]),
    "a hook of no module": ({"pair_weights": "no.such:f"}, ["pair_weights", "cannot be imported"]),
    "positions of a sequence": ({"positions_per_pair": 3}, ["positions_per_pair", "sequence"]),
    "cache with KL": (
        {"method": "tdpo2", "precompute_ref_log_probs": True},
        ["precompute_ref_log_probs", "tdpo2", "distribution"],
    ),
    "cache without reference": (
        {"method": "simpo", "precompute_ref_log_probs": True},
        ["precompute_ref_log_probs"],
    ),
    "max_length": ({"max_length": 0}, ["max_length"]),
    "memory budget": ({"memory_budget": -5}, ["memory_budget"]),
    "level": ({"level": "steps"}, ["level", "solution"]),
    "too_long": ({"too_long": "truncate"}, ["too_long", "truncate_end"]),
    "token label smoothing": ({"label_smoothing_factor": 0.1}, ["label_smoothing"]),
    "bf16 and fp16": ({"bf16": True, "fp16": True}, ["fp16"]),
    "unknown logger": ({"report_to": "wandbb"}, ["report_to", "wandb"]),
    "fsdp 1": ({"fsdp": True, "fsdp_config": {"version": 1}}, ["fsdp_config", "FSDP2"]),
    "eval without steps": ({"save_strategy": "sometimes"}, ["sometimes"]),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_options(case: str) -> None:
    options, words = BAD_OPTIONS[case]
    with pytest.raises(ConfigError) as error:
        PreferenceConfig(**options)
    assert all(word in str(error.value) for word in words), str(error.value)


# -- values and flags ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "hint", "want"),
    [
        ("1e-6", float, 1e-6),
        (3, float, 3),
        ("3", int, 3),
        (4.0, int, 4),
        ("true", bool, True),
        ("No", bool, False),
        (False, str, "no"),
        (False, str | None, "no"),
        (7, str, "7"),
        ("null", int | None, None),
        ("none", str | None, None),
        ("[a, b]", list[str] | None, ["a", "b"]),
        ("a", list[str], ["a"]),
        ("a.jsonl", str | list[str], "a.jsonl"),
        (["a", "b"], str | list[str], ["a", "b"]),
        ('{"num_cycles": 1}', dict | str | None, {"num_cycles": 1}),
        ("", str, ""),
    ],
)
def test_coerce(value: Any, hint: Any, want: Any) -> None:
    got = coerce("field", value, hint)
    assert got == want
    assert type(got) is type(want)


@pytest.mark.parametrize(
    ("value", "hint"),
    [("x", float), ("1.5", int), (2.5, int), ("maybe", bool), (3, bool), (None, float), ([1], int)],
)
def test_coerce_refuses(value: Any, hint: Any) -> None:
    with pytest.raises(ConfigError, match="field"):
        coerce("field", value, hint)


def test_flags() -> None:
    words, flags = split(
        COMMAND,
        ["c.yaml", "--bf16", "--learning-rate=1e-3", "--train_data", "a", "b", "--beta", "-1"],
    )
    assert words == ["c.yaml"]
    assert flags == {
        "bf16": [],
        "learning_rate": ["1e-3"],
        "train_data": ["a", "b"],
        "beta": ["-1"],
    }


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("model: m\ntrain_data: [a.jsonl]\nbeta: 0.3\nlearning_rate: 1e-5\nlevel: step")
    script, config, _ = load_options([str(path), "--beta", "0.2", "--eval_strategy", "no"])
    assert (script.model, script.train_data) == ("m", ["a.jsonl"])
    assert (config.beta, config.learning_rate, config.level) == (0.2, 1e-5, "step")


def test_resolved_options_read_back(tmp_path: Path) -> None:
    flags = ["--method", "tdpo2", "--alpha", "0.3", "--adapter", "lora", "--lora_r", "4"]
    options = load_options([*NEEDED, *flags, "--lr_scheduler_type", "cosine"])
    path = tmp_path / "again.yaml"
    path.write_text(options.as_yaml())
    again = load_options([str(path)])
    assert again.script == options.script
    assert again.config.to_dict() == options.config.to_dict()


def test_a_file_may_say_true_where_transformers_wants_text(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("model: m\ntrain_data: d\nfsdp: true\nresume_from_checkpoint: true\n")
    config = load_options([str(path)]).config
    assert (config.fsdp, config.resume_from_checkpoint) == (True, True)
    assert load_options([*NEEDED, "--resume_from_checkpoint"]).config.resume_from_checkpoint is True
    assert load_options([*NEEDED, "--fsdp"]).config.fsdp is True


FIRST_NAMES = {
    "model_name_or_path": "model",
    "torch_dtype": "dtype",
    "dataset_name": "train_data",
    "eval_dataset": "eval_data",
    "lora_rank": "adapter",
    "cutoff_len": "max_length",
    "max_prompt_length": "max_length",
    "truncation_mode": "too_long",
    "rpo_alpha": "nll_weight",
    "pref_ftx": "nll_weight",
    "pref_beta": "beta",
    "pref_loss": "loss_type",
    "dpo_label_smoothing": "label_smoothing",
    "gamma_beta_ratio": "margin",
}


def test_names_of_other_trainers_lead_to_options_that_exist() -> None:
    """The names that TRL and LLaMA-Factory users type first, each to what does the same."""
    known = {one.name for cls in (ScriptArguments, PreferenceConfig) for one in fields(cls)}
    for name, ours in FIRST_NAMES.items():
        assert ours in {*re.findall(r"[a-z]+(?:_[a-z]+)*", HINTS[name])} & known, name
        with pytest.raises(ConfigError, match=rf"no option '{name}'.*{ours}"):
            load_options([*NEEDED, f"--{name}", "1"])


def test_several_losses_as_flags_and_as_yaml(tmp_path: Path) -> None:
    words = ["--loss_type", "sigmoid", "bco_pair", "sft", "--loss_weights", "0.8", "0.2", "1"]
    config = load_options([*NEEDED, *words]).config
    losses = DPO(loss_type=["sigmoid", "bco_pair", "sft"], loss_weights=[0.8, 0.2, 1.0])
    assert config.build_objective() == losses
    path = tmp_path / "c.yaml"
    path.write_text("loss_type: [sigmoid, bco_pair, sft]\nloss_weights: [0.8, 0.2, 1]\n")
    assert load_options([str(path), *NEEDED]).config.build_objective() == losses
    one = load_options([*NEEDED, "--loss_type", "ipo"]).config.build_objective()
    assert one == DPO(link="ipo") == PreferenceConfig(loss_type="ipo").build_objective()


def test_a_function_from_python_is_an_option_by_its_name() -> None:
    """A run is described, saved and resumed by names."""
    config = PreferenceConfig(token_weights=half_weights, pair_weights="wpo")
    assert config.token_weights == f"{__name__}:half_weights"
    assert config.build_objective().outputs == ("logp", "ref_logp", "log_sum_sq")
    json.loads(config.to_json_string())
    with pytest.raises(ConfigError, match=r"token_weights is <function .*no import path"):
        PreferenceConfig(token_weights=lambda logp: logp.exp())


def half_weights(logp: Any) -> Any:
    return 0 * logp + 0.5


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_sound(path: Path) -> None:
    script, config, _ = load_options([str(path)])
    assert script.model
    assert config.method.replace("-", "_") == path.stem or path.stem in ("lora", "quickstart")
    assert set(yaml.safe_load(path.read_text())) > {"model", "train_data", "method", "beta"}


BAD_FILES = {
    "not a mapping": ("- a\n- b\n", ["option: value"]),
    "broken yaml": ("beta: [1\n", ["not valid YAML", "line"]),
    "twice": ("beta: 1\nbeta: 2\n", ["beta", "twice", "line 2"]),
    "unknown key": ("betta: 1\n", ["betta", "beta"]),
    "not text": (b"\xff\xfe\x00beta", ["cannot be read"]),
    "wrong type": ("learning_rate: fast\n", ["learning_rate", "fast", "number"]),
    "wrong choice": ("method: dppo\n", ["method", "dppo", "tdpo2"]),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files(case: str, tmp_path: Path) -> None:
    content, words = BAD_FILES[case]
    path = tmp_path / "run.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as error:
        load_options([str(path), *NEEDED])
    assert all(word in str(error.value) for word in ["run.yaml", *words]), str(error.value)


BAD_FLAGS = {
    "unknown": (["--modle", "x"], ["modle", "model"]),
    "single dash": (["-beta", "1"], ["--beta"]),
    "twice": (["--beta", "1", "--beta", "2"], ["beta", "twice"]),
    "two files": (["a.yaml", "b.yaml"], ["One config file"]),
    "no such file": (["missing.yaml"], ["missing.yaml"]),
    "lora without adapter": (["--lora_r", "8", *NEEDED], ["lora_r", "adapter: lora"]),
    "transformers' choices": (
        [*NEEDED, "--save_strategy", "sometimes"],
        ["save_strategy is 'sometimes'", "epoch"],
    ),
    "evaluation": ([*NEEDED, "--eval_strategy", "often"], ["eval_strategy is 'often'", "epoch"]),
    "of another method": ([*NEEDED, "--penalty", "50"], ["penalty=50", "'dpo'", "dpop"]),
    "its own default": ([*NEEDED, "--method", "tdpo2", "--link", "sigmoid"], ["link", "step-dpo"]),
    "no model": (["--train_data", "x"], ["model is missing"]),
    "no data": (["--model", "x"], ["train_data is missing"]),
    "TRL's name of RPO": (["--rpo_alpha", "1"], ["rpo_alpha", "Use nll_weight"]),
    "TRL's old dtype": (["--torch_dtype", "bfloat16"], ["torch_dtype", "Use dtype."]),
    "LLaMA-Factory's loss": (["--pref_loss", "ipo"], ["pref_loss", "Use loss_type"]),
    "forgotten data": (["--model", "m", "--train_data"], ["train_data needs a value"]),
    "forgotten number": ([*NEEDED, "--beta"], ["beta needs a value"]),
    "forgotten choice": ([*NEEDED, "--method"], ["method needs a value"]),
    "eval without data": ([*NEEDED, "--eval_strategy", "epoch"], ["eval_strategy", "eval_data"]),
}


@pytest.mark.parametrize("case", BAD_FLAGS)
def test_bad_flags(case: str) -> None:
    argv, words = BAD_FLAGS[case]
    with pytest.raises(ConfigError) as error:
        load_options(argv)
    assert all(word in str(error.value) for word in words), str(error.value)


BAD_NUMBERS: dict[str, Any] = {
    "learning_rate": [-1e-5, float("nan")],
    "per_device_train_batch_size": [0],
    "per_device_eval_batch_size": [0],
    "gradient_accumulation_steps": [0],
    "seed": [-1, 2**32],
    "max_steps": [0, -2],
    "num_train_epochs": [0, -1.0],
    "save_steps": [0],
    "beta": ["0.1"],
    "max_length": [1.5],
}


@pytest.mark.parametrize(("name", "value"), [(k, v) for k, vs in BAD_NUMBERS.items() for v in vs])
def test_bad_numbers_are_named(name: str, value: Any) -> None:
    with pytest.raises(
        ConfigError, match=f"^{name} is {str(value).replace('.', '[.]')}|^{name} is '"
    ):
        PreferenceConfig(**{name: value})


@pytest.mark.parametrize("value", ["none", "null", None, [None], [], ["none"]])
def test_no_logger(value: Any, tmp_path: Path) -> None:
    assert PreferenceConfig(report_to=value).report_to == []
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({"report_to": value}))
    assert load_options([str(path), *NEEDED]).config.report_to == []
    if isinstance(value, str):
        assert load_options(["--report_to", value, *NEEDED]).config.report_to == []


IGNORED: dict[str, tuple[dict[str, Any], str]] = {
    "metrics by batch": ({"batch_eval_metrics": True}, "batch_eval_metrics has no effect"),
    "batches apart": ({"eval_do_concat_batches": False}, "eval_do_concat_batches has no effect"),
    "inputs": ({"include_for_metrics": ["inputs"]}, "include_for_metrics has no effect"),
    "labels": ({"label_names": ["labels"]}, "label_names has no effect"),
    "a column": ({"length_column_name": "n"}, "length_column_name has no effect"),
    "means apart": ({"average_tokens_across_devices": False}, "average_tokens_across_devices"),
    "by length": ({"train_sampling_strategy": "group_by_length"}, "tokens_per_batch"),
    "workers kept": ({"dataloader_persistent_workers": True}, "Set dataloader_num_workers"),
    "pieces": ({"accelerator_config": {"split_batches": True}}, "split_batches would cut"),
    "uneven": ({"accelerator_config": {"even_batches": False}}, "even_batches would give"),
    "dispatched": (
        {"accelerator_config": {"dispatch_batches": True}},
        "every process reads its own pairs",
    ),
    "halving": ({"auto_find_batch_size": True, "tokens_per_batch": 64}, "lower tokens_per_batch"),
    "fetched ahead": ({"dataloader_prefetch_factor": 2}, "prefetch_factor"),
}


@pytest.mark.parametrize("case", IGNORED)
def test_options_about_rows_that_would_be_ignored_are_refused(case: str, tmp_path: Path) -> None:
    changes, said = IGNORED[case]
    with pytest.raises(ConfigError, match=said):
        PreferenceConfig(output_dir=str(tmp_path), **changes)


def test_a_config_can_be_made_of_another(tmp_path: Path) -> None:
    """What the checks of a config set is what they take."""
    import dataclasses

    one = PreferenceConfig(output_dir=str(tmp_path), dataloader_num_workers=1)
    assert dataclasses.replace(one, seed=3).label_names == one.label_names
