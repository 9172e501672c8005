"""Layers that no adapter can change are left out of `all-linear`, and refused where named."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, VeraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.models.miniatures import miniature
from prefkit.errors import ConfigError, ModelError
from prefkit.model.adapter_targets import check_names, fitted, unfit_layers
from tests.train.trainer_cases import SHAPE, VOCAB, tiny_model, trainer

SMALL: dict[str, Any] = {**SHAPE, "vocab_size": VOCAB}
EXPERTS: dict[str, Any] = {"num_local_experts": 2, "num_experts_per_tok": 1}
SSM: dict[str, Any] = {"vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 1}
SSM |= {"state_size": 8}
MAMBA2: dict[str, Any] = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1}
MAMBA2 |= {"mamba_d_state": 8, "num_hidden_layers": 2}
V4: dict[str, Any] = {"num_attention_heads": 8, "num_key_value_heads": 1, "num_hidden_layers": 1}
CASES: dict[str, tuple[dict[str, Any], set[str]]] = {
    "llama4_text": ({**SMALL, **EXPERTS, "intermediate_size_mlp": 16}, {"router"}),
    "phimoe": ({**SMALL, **EXPERTS}, {"router"}),
    "deepseek_v4": ({**SMALL, **V4}, {"o_a_proj"}),
    "mamba": (SSM, {"x_proj", "dt_proj", "out_proj"}),
    "falcon_mamba": (SSM, {"x_proj", "dt_proj", "out_proj"}),
    "mamba2": ({**SSM, "num_heads": 4, "head_dim": 8, "n_groups": 1}, {"out_proj"}),
    "nemotron_h": (
        {**SMALL, "layers_block_type": ["mamba", "attention"], "mamba_num_heads": 4}
        | {"mamba_head_dim": 8, "n_groups": 1, "ssm_state_size": 8},
        {"out_proj"},
    ),
    "falcon_h1": ({**SMALL, **MAMBA2, "mamba_d_ssm": 32}, {"out_proj"}),
    "granitemoehybrid": (
        {**SMALL, **MAMBA2, **EXPERTS, "layer_types": ["mamba", "attention"]},
        {"out_proj"},
    ),
    "jamba": ({**SMALL, "num_experts": 2, "use_mamba_kernels": False}, {"dt_proj"}),
    "gemma3n_text": (
        {**SMALL, "num_hidden_layers": 2, "num_kv_shared_layers": 0, "intermediate_size": 32}
        | {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCAB}
        | {"layer_types": ["sliding_attention", "full_attention"]}
        | {"activation_sparsity_pattern": [0.0, 0.0], "altup_num_inputs": 2},
        {"correction_coefs"},
    ),
    "falcon": ({"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}, set()),
    "qwen3": (SMALL, set()),
}


def made(kind: str, device: str = "meta") -> Any:
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **CASES[kind][0]))


def all_linear(**more: Any) -> LoraConfig:
    return LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", **more)


def leaves(names: Any) -> set[str]:
    return {name.rpartition(".")[2] for name in names}


@pytest.mark.parametrize("kind", CASES)
def test_all_linear_leaves_them_out(kind: str) -> None:
    model = made(kind)
    assert leaves(unfit_layers(model)) == CASES[kind][1]
    linear = {n for n, part in model.named_modules() if isinstance(part, torch.nn.Linear)}
    linear -= {"lm_head"}
    asked = all_linear()
    adapted = get_peft_model(model, fitted(asked, model)[0])
    assert asked.exclude_modules is None  # the user's own is left as it was
    end, start = ".lora_A.default", "base_model.model."
    got = {n.removesuffix(end) for n, _ in adapted.named_modules() if n.endswith(end)}
    got = {n.removeprefix(start) for n in got}
    assert got == {n for n in linear if n.rpartition(".")[2] not in CASES[kind][1]}


@pytest.mark.parametrize("exclude", [None, ["q_proj"], r".*\.q_proj"])
def test_what_the_user_leaves_out_stays_out(exclude: Any) -> None:
    model = made("llama4_text")
    adapted = get_peft_model(model, fitted(all_linear(exclude_modules=exclude), model)[0])
    touched = {n.split(".")[-4] for n, _ in adapted.named_parameters() if "lora_A" in n}
    assert "router" not in touched
    assert ("q_proj" in touched) == (exclude is None)
    assert "k_proj" in touched


def test_kinds_of_adapters_that_cannot_exclude_name_what_is_left() -> None:
    model = made("llama4_text")
    asked = VeraConfig(task_type="CAUSAL_LM", target_modules="all-linear")
    found, told = fitted(asked, model)
    assert len(told) == 1
    assert {"q_proj", "down_proj"} <= leaves(found.target_modules)
    assert not {"router", "lm_head"} & leaves(found.target_modules)
    default = LoraConfig(task_type="CAUSAL_LM")  # PEFT's own targets
    assert fitted(default, model) == (default, [])


@pytest.mark.parametrize("kind", [kind for kind in CASES if CASES[kind][1]])
def test_named_by_the_user_they_are_refused_with_a_remedy_that_helps(kind: str) -> None:
    model = made(kind)
    leaf = min(CASES[kind][1])
    named = LoraConfig(task_type="CAUSAL_LM", target_modules=[leaf])
    with pytest.raises(ModelError, match=rf"{leaf} of .*exclude_modules.*'all-linear'"):
        fitted(named, model)
    every = LoraConfig(task_type="CAUSAL_LM", target_modules=".*proj|.*router|.*coefs")
    with pytest.raises(ModelError, match="cannot change"):
        fitted(every, model)
    every.exclude_modules = sorted(CASES[kind][1])
    assert fitted(every, model) == (every, [])


@pytest.mark.parametrize("kind", ["llama4_text", "mamba2"])
def test_they_train_with_the_rest(kind: str, tmp_path: Path, caplog: Any) -> None:
    with caplog.at_level(logging.WARNING, "prefkit"):
        run = trainer(tmp_path, made(kind, "cpu"), peft_config=all_linear(), max_steps=1)
    told = [r.getMessage() for r in caplog.records if "leaves out" in r.getMessage()]
    assert len(told) == 1
    assert min(CASES[kind][1]) in told[0]
    before = {n: p.detach().clone() for n, p in run.model.named_parameters() if "lora_B" in n}
    run.train()
    assert all(
        not torch.equal(p, before[n]) for n, p in run.model.named_parameters() if n in before
    )


def test_training_and_evaluation_of_gemma_3n_are_one_model() -> None:
    model = made("gemma3n_text", "cpu").double()
    model = get_peft_model(model, fitted(all_linear(init_lora_weights=False), model)[0])
    ids = torch.arange(12)[None]
    with torch.no_grad():
        trained, evaluated = model.train()(ids).logits, model.eval()(ids).logits
    torch.testing.assert_close(trained, evaluated, rtol=0, atol=1e-9)


def test_what_peft_itself_refuses_has_a_remedy_too(tmp_path: Path) -> None:
    named = LoraConfig(task_type="CAUSAL_LM", target_modules="no_such_layer")
    with pytest.raises(ConfigError, match=r"no_such_layer.*target_modules='all-linear'"):
        trainer(tmp_path, tiny_model(), peft_config=named)


def test_what_runs_without_gradient_is_left_out() -> None:
    """DeepSeek-V3.2's indexer: its adapter would wait for a gradient that never comes."""
    unfit = unfit_layers(miniature("deepseek_v32"))
    assert leaves(unfit) == {"wq_b", "wk", "weights_proj"}
    assert set(unfit.values()) == {"the layer around it runs without gradient"}


NOWHERE: dict[str, tuple[dict[str, Any], str]] = {
    "target_modules": ({"target_modules": ["q_proj", "k_prj"]}, "Did you mean: k_proj"),
    "modules_to_save": ({"modules_to_save": ["embed_token"]}, "Did you mean: embed_tokens"),
    "target_parameters": (
        {"target_parameters": ["mlp.down_prj.weight"]},
        "has no parameter of that name. Did you mean: mlp.down_proj.weight",
    ),
}


@pytest.mark.parametrize("option", NOWHERE)
def test_names_that_peft_would_pass_over_are_refused(option: str) -> None:
    changes, words = NOWHERE[option]
    lora = LoraConfig(**{"task_type": "CAUSAL_LM", "target_modules": ["q_proj"], **changes})
    with pytest.raises(ModelError, match=words):
        check_names(lora, tiny_model())


def test_names_of_layers_and_patterns_are_taken() -> None:
    for targets in (["layers.0.self_attn.q_proj", "v_proj"], r".*q_proj", "all-linear"):
        lora = LoraConfig(
            task_type="CAUSAL_LM", target_modules=targets, modules_to_save=["norm", "lm_head"]
        )
        check_names(lora, tiny_model())
