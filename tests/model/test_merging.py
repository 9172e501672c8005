"""A merged model computes what base and adapter compute together, and its folder is whole."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from prefkit.cli.main import main
from prefkit.errors import ConfigError, ModelError
from prefkit.model.merging import merge
from tests.train.test_adapters import KINDS, base_folder, load, trained_adapter
from tests.train.test_qlora import NF4, WIDE, needs_it
from tests.train.trainer_cases import byte_tokenizer, save_model, tiny_model

IDS = torch.tensor([[5, 9, 200, 31, 7, 8]])
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("llama", {}),
    **{name: ("llama", kind) for name, kind in KINDS.items()},
    "tied": ("llama-tied", {}),
    "tied, head in full": ("llama-tied", {"modules_to_save": ["lm_head"]}),
    "tied, embeddings in full": ("llama-tied", {"modules_to_save": ["embed_tokens"]}),
    "gpt2": ("gpt2", {"target_modules": ["c_attn"]}),
}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits.float()


def both(folder: Path, family: str, **kind: Any) -> tuple[str, str, torch.Tensor]:
    """A base model, an adapter of it, and what they compute together."""
    base = save_model(folder / "base", family, scale=3.0)
    adapter = trained_adapter(folder / "adapter", base, **kind)
    return base, adapter, logits(PeftModel.from_pretrained(load(base), adapter))


@pytest.mark.parametrize("case", CASES)
def test_the_merged_model_is_base_and_adapter(case: str, tmp_path: Path) -> None:
    family, kind = CASES[case]
    base, adapter, want = both(tmp_path, family, **kind)
    merge(adapter, str(tmp_path / "merged"))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(merged), want, rtol=1e-4, atol=1e-4)
    assert (logits(load(base)) - want).abs().max() > 0.05


def test_a_bfloat16_base_stays_in_its_format_unless_told(tmp_path: Path) -> None:
    base = tmp_path / "base"
    tiny_model(scale=3.0).to(torch.bfloat16).save_pretrained(base)
    adapter = trained_adapter(tmp_path / "adapter", str(base))
    merge(adapter, str(tmp_path / "as_it_is"))
    merge(adapter, str(tmp_path / "wide"), dtype="float32")
    for name, kind in (("as_it_is", torch.bfloat16), ("wide", torch.float32)):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype="auto")
        assert model.dtype == kind


def test_tokenizer_and_template_are_the_adapters(tmp_path: Path) -> None:
    _, adapter, _ = both(tmp_path, "llama")
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained(adapter)
    said: list[str] = []
    merge(adapter, str(tmp_path / "merged"), say=said.append)
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template == "{{ messages }}"
    assert "with the tokenizer and its chat template" in said[-1]
    assert "LoRA of rank 4 on 4 layers" in said[1]


@needs_it
def test_a_base_that_is_stored_quantised_is_unpacked(tmp_path: Path) -> None:
    """And after QLoRA the base is what it was."""
    whole = save_model(tmp_path / "whole", **WIDE)
    packed = AutoModelForCausalLM.from_pretrained(
        whole, quantization_config=BitsAndBytesConfig(**NF4), dtype=torch.float32
    )
    packed.save_pretrained(tmp_path / "packed")
    adapter = trained_adapter(tmp_path / "adapter", whole)
    merge(adapter, str(tmp_path / "merged"), base_model=str(tmp_path / "packed"), dtype="float32")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert merged.dtype == torch.float32
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "packed", dtype=torch.float32)
    want = logits(PeftModel.from_pretrained(again.dequantize().float(), adapter))
    torch.testing.assert_close(logits(merged), want, rtol=1e-4, atol=1e-4)


# -- what cannot be --------------------------------------------------------------------------------


def moved_base(folder: Path) -> tuple[str, str]:
    base, adapter, _ = both(folder, "llama")
    shutil.move(base, folder / "elsewhere")
    return adapter, str(folder / "merged")


def other_base(folder: Path) -> tuple[str, str]:
    _, adapter, _ = both(folder, "llama")
    shutil.rmtree(folder / "base")
    save_model(folder / "base", hidden_size=24, head_dim=12)
    return adapter, str(folder / "merged")


def prompt(folder: Path) -> tuple[str, str]:
    base = base_folder(folder / "base")
    asked = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    get_peft_model(load(base), asked).save_pretrained(folder / "adapter")
    return str(folder / "adapter"), str(folder / "merged")


def output_there(folder: Path) -> tuple[str, str]:
    _, adapter, _ = both(folder, "llama")
    (folder / "merged").mkdir()
    return adapter, str(folder / "merged")


REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "a model": (
        lambda folder: (base_folder(folder / "base"), str(folder / "merged")),
        ModelError,
        r"base is no folder of an adapter: it holds no adapter_config\.json",
    ),
    "nothing": (
        lambda folder: (str(folder / "nothing"), str(folder / "merged")),
        ModelError,
        "There is no folder",
    ),
    "a base that was moved": (moved_base, ModelError, "is an adapter of .*base, and there is no"),
    "a base of another size": (other_base, ModelError, "the adapter cannot be put on the model"),
    "an adapter of prompts": (prompt, ModelError, "PEFT cannot merge this adapter"),
    "an output that is there": (output_there, ConfigError, "merged exists already"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_merged(case: str, tmp_path: Path) -> None:
    make, kind, words = REFUSED[case]
    adapter, out = make(tmp_path)
    there = Path(out).exists()
    with pytest.raises(kind, match=words):
        merge(adapter, out)
    assert Path(out).exists() == there
    assert not list(tmp_path.glob(".*"))


def test_the_base_may_lie_elsewhere(tmp_path: Path) -> None:
    adapter, out = moved_base(tmp_path)
    merge(adapter, out, base_model=str(tmp_path / "elsewhere"))
    want = logits(PeftModel.from_pretrained(load(str(tmp_path / "elsewhere")), adapter))
    merged = AutoModelForCausalLM.from_pretrained(out)
    torch.testing.assert_close(logits(merged), want, rtol=1e-4, atol=1e-4)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, adapter, _ = both(tmp_path, "llama")
    out = str(tmp_path / "merged")
    assert main(["merge", adapter, "--out", out, "--dtype", "bfloat16"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["Base", "Adapter", "Merged"]
    assert base in lines[0]
    assert "bfloat16" in lines[0]
    assert main(["merge", adapter, "--out", out]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["merge", "--out", out]) == 2
    assert "One ADAPTER, please; got none" in capsys.readouterr().err
