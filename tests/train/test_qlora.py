"""Adapters on weights of 4 and 8 bits train as on the dequantised weights; and the refusals."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from prefkit import ConfigError, ModelError
from prefkit.cli.main import main
from prefkit.train.checkpointing import checkpoint
from tests.cli.test_cli import write_rows
from tests.train.test_adapters import assert_near, first_and_last, lora
from tests.train.trainer_cases import ROWS, logs_of, save_model, trainer

INSTALLED = importlib.util.find_spec("bitsandbytes") is not None
needs_it = pytest.mark.skipif(not INSTALLED, reason="bitsandbytes is not installed")
# Blocks of 64 weights, and rows in blocks of 32, as bitsandbytes wants them on a CPU.
WIDE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "head_dim": 32,
    "scale": 2.0,
}
NF4: dict[str, Any] = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


def model(folder: Path) -> str:
    return save_model(folder, **WIDE)


def dequantised(folder: str, asked: BitsAndBytesConfig) -> Any:
    """The model whose float32 weights are what the packed ones stand for."""
    packed = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=asked, dtype=torch.float32
    )
    return packed.dequantize().float()


def linear_kinds(run: Any) -> set[str]:
    """Classes of the layers that adapters wrap."""
    parts = run.model.modules()
    return {type(part.base_layer).__name__ for part in parts if hasattr(part, "base_layer")}


@needs_it
@pytest.mark.parametrize("nested", [False, True])
def test_4_bit_training_is_that_of_the_dequantised_weights(nested: bool, tmp_path: Path) -> None:
    asked = BitsAndBytesConfig(**NF4, bnb_4bit_use_double_quant=nested)
    folder = model(tmp_path / "model")
    one = trainer(tmp_path / "one", folder, quantization_config=asked, peft_config=lora())
    assert linear_kinds(one) == {"Linear4bit"}
    assert type(one.head.module) is nn.Linear
    assert one.head.module.weight.dtype == torch.float32
    got = first_and_last(one)
    plain = dequantised(folder, asked)
    assert_near(got, first_and_last(trainer(tmp_path / "two", plain, peft_config=lora())))
    assert got[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert got[1]["rewards/margins"] > 1e-3


@needs_it
def test_8_bits_train(tmp_path: Path) -> None:
    """Its kernels compute otherwise in training than in evaluation: ln 2 is not exact."""
    asked = BitsAndBytesConfig(load_in_8bit=True)
    folder = model(tmp_path / "model")
    run = trainer(tmp_path / "one", folder, quantization_config=asked, peft_config=lora())
    assert linear_kinds(run) == {"Linear8bitLt"}
    got = first_and_last(run)
    assert got[0]["loss"] == pytest.approx(0.693147, abs=2e-3)
    assert got[1]["rewards/margins"] > 1e-3


@needs_it
def test_resume_is_exact(tmp_path: Path) -> None:
    asked = BitsAndBytesConfig(**NF4)
    folder = model(tmp_path / "model")
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2}

    def run() -> Any:
        own: dict[str, Any] = {"quantization_config": asked, "peft_config": lora()}
        return trainer(tmp_path / "out", folder, **own, **options)

    whole = run()
    whole.train()
    checkpoint.delete(tmp_path / "out" / "checkpoint-4")
    again = run()
    again.train(resume_from_checkpoint=True)
    for (name, one), two in zip(
        again.model.named_parameters(), whole.model.parameters(), strict=True
    ):
        assert torch.equal(one, two), name
    assert logs_of(again)[-1]["loss"] == logs_of(whole)[-1]["loss"]


@needs_it
def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", model(tmp_path / "model"), "--output_dir", str(tmp_path / "out")]
    words += ["--train_data", write_rows(tmp_path / "rows.jsonl", ROWS), "--max_steps", "2"]
    words += ["--load_in_4bit", "true", "--use_bnb_nested_quant", "true", "--use_peft", "true"]
    assert main(["train", *words, "--logging_steps", "1", "--disable_tqdm", "true"]) == 0
    assert "0.6931" in capsys.readouterr().out
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


@needs_it
def test_a_quantised_head_is_refused(tmp_path: Path) -> None:
    asked = BitsAndBytesConfig(**NF4, llm_int8_skip_modules=["q_proj"])
    folder = model(tmp_path / "model")
    with pytest.raises(ModelError, match=r"the head is quantised .*llm_int8_skip_modules"):
        trainer(tmp_path, folder, quantization_config=asked, peft_config=lora())


@needs_it
def test_a_loaded_model_needs_an_adapter_too(tmp_path: Path) -> None:
    packed = AutoModelForCausalLM.from_pretrained(
        model(tmp_path / "model"), quantization_config=BitsAndBytesConfig(**NF4)
    )
    with pytest.raises(ModelError, match="nothing but an adapter can train"):
        trainer(tmp_path, packed)


@needs_it
def test_weights_repacked_for_evaluation_are_refused(tmp_path: Path) -> None:
    packed = AutoModelForCausalLM.from_pretrained(
        model(tmp_path / "model"), quantization_config=BitsAndBytesConfig(**NF4)
    )
    if not packed.model.layers[0].mlp.up_proj.support_avx512bf16_for_cpu:
        pytest.skip("this CPU has no AVX512-BF16, for which alone bitsandbytes repacks")
    with torch.no_grad():
        packed.eval()(torch.tensor([[5, 9]]))
    with pytest.raises(ModelError, match="has been run in evaluation mode"):
        trainer(tmp_path, packed, peft_config=lora())


def test_bits_without_an_adapter_are_refused_before_loading(tmp_path: Path) -> None:
    """Whether the package is there or not: first it is missed, then the adapter."""
    words = "that only an adapter can" if INSTALLED else "needs the package bitsandbytes"
    with pytest.raises(ConfigError, match=words):
        trainer(tmp_path, "no/model", quantization_config=BitsAndBytesConfig(**NF4))


def test_two_quantisations_are_refused(tmp_path: Path) -> None:
    asked = BitsAndBytesConfig(**NF4)
    with pytest.raises(ConfigError, match="to the trainer and in model_init_kwargs"):
        trainer(
            tmp_path,
            "no/model",
            quantization_config=asked,
            model_init_kwargs={"quantization_config": asked},
        )


def test_packed_weights_are_not_sharded(tmp_path: Path) -> None:
    asked = BitsAndBytesConfig(**NF4)
    with pytest.raises(ConfigError, match="sharding would cut packed weights"):
        trainer(tmp_path, "no/model", quantization_config=asked, peft_config=lora(), fsdp=True)
