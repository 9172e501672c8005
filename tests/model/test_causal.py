"""Models that look ahead are refused by name; causal ones never, whatever rounding does."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.llama import LlamaForCausalLM, LlamaModel

from prefkit.errors import ModelError
from prefkit.model.causal import check_causal
from tests.train import test_supervised
from tests.train.trainer_cases import CONFIGS, MOE, SHAPE, VOCAB, tiny_model, trainer

SMALL: dict[str, Any] = {**SHAPE, "vocab_size": VOCAB, "pad_token_id": 0, "eos_token_id": 1}
TEXT: dict[str, Any] = {**SMALL, "model_type": "gemma"}
VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
XLM: dict[str, Any] = {"vocab_size": VOCAB, "emb_dim": 16, "n_layers": 1, "n_heads": 2}
XLNET: dict[str, Any] = {"vocab_size": VOCAB, "d_model": 16, "n_layer": 1, "n_head": 2}
XLNET |= {"d_inner": 32}
CPMANT: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "dim_head": 8,
    "dim_ff": 16,
    "num_hidden_layers": 1,
    "prompt_length": 4,
}


def made(kind: str, auto: Any = AutoModelForCausalLM, **changes: Any) -> Any:
    torch.manual_seed(0)
    return auto.from_config(AutoConfig.for_model(kind, **changes))


def gemma4(**changes: Any) -> Any:
    return made("gemma4_text", **{**SMALL, "hidden_size_per_layer_input": 8, **changes})


LOOK_AHEAD: dict[str, tuple[Any, list[str]]] = {
    "bert": (lambda: made("bert", **SMALL), ["BertLMHeadModel", "is_decoder=True"]),
    "roberta": (lambda: made("roberta", **SMALL), ["RobertaForCausalLM", "is_decoder=True"]),
    "xlm-roberta": (lambda: made("xlm-roberta", **SMALL), ["XLMRoberta", "is_decoder=True"]),
    "gemma 3": (
        lambda: made("gemma3_text", **SMALL, use_bidirectional_attention=True),
        ["Gemma3ForCausalLM", "use_bidirectional_attention=False"],
    ),
    "gemma 4": (
        lambda: gemma4(use_bidirectional_attention="all"),
        ["Gemma4ForCausalLM", "use_bidirectional_attention='all'"],
    ),
    "llama": (lambda: tiny_model(is_causal=False), ["LlamaForCausalLM", "is_causal=True"]),
    "xlm": (lambda: made("xlm", **XLM), ["XLMWithLMHeadModel", "causal=True"]),
    "xlnet": (lambda: made("xlnet", **XLNET), ["XLNetLMHeadModel", "attn_type='uni'"]),
    "cpmant": (lambda: made("cpmant", **CPMANT), ["CpmAntForCausalLM"]),
    "paligemma": (
        lambda: made(
            "paligemma",
            AutoModelForImageTextToText,
            text_config=TEXT,
            vision_config={"model_type": "siglip_vision_model", **VISION},
            projection_dim=16,
            image_token_index=0,
        ),
        ["PaliGemmaForConditionalGeneration"],
    ),
}


@pytest.mark.parametrize("case", LOOK_AHEAD)
def test_models_that_look_ahead_are_refused_by_name(case: str) -> None:
    make, words = LOOK_AHEAD[case]
    model = make()
    with pytest.raises(ModelError, match="is not causal") as error:
        check_causal(model)
    assert all(word in str(error.value) for word in words), str(error.value)


def bart(kind: str) -> Any:
    from transformers import AutoModelForSeq2SeqLM

    small = {"d_model": 16, "vocab_size": 64, "pad_token_id": 0, "decoder_start_token_id": 0}
    layers = {"num_layers": 1, "encoder_layers": 1, "decoder_layers": 1, "d_ff": 16, "d_kv": 8}
    return made(kind, AutoModelForSeq2SeqLM, **small, **layers)


@pytest.mark.parametrize("kind", ["bart", "t5"])
def test_encoder_decoders_are_refused_by_name(kind: str) -> None:
    from prefkit.model.head.fused import install

    for check in (check_causal, install):
        with pytest.raises(ModelError, match="ForConditionalGeneration is an encoder-decoder"):
            check(bart(kind))


def test_reformer_is_refused_by_name() -> None:
    axial = {"axial_pos_embds": False, "hidden_size": 16, "attention_head_size": 8}
    model = made("reformer", is_decoder=True, vocab_size=64, num_attention_heads=2, **axial)
    with pytest.raises(ModelError, match=r"ReformerModelWithLMHead .* multiple of its chunks"):
        check_causal(model)


@pytest.mark.parametrize("who", ["policy", "reference", "supervised"])
def test_a_trainer_refuses_them_before_rows_are_read(who: str, tmp_path: Path) -> None:
    make = test_supervised.trainer if who == "supervised" else trainer
    model, extra = tiny_model(is_causal=False), {}
    if who == "reference":
        model, extra = tiny_model(), {"ref_model": model}
    with pytest.raises(ModelError, match="LlamaForCausalLM is not causal"):
        make(tmp_path, model, rows=str(tmp_path / "no such file.jsonl"), **extra)


class Rounding(LlamaForCausalLM):
    """Later tokens move its earlier logits, but have no gradient: what ties of a router do."""

    def forward(self, input_ids: Tensor, **kwargs: Any) -> Any:
        output = super().forward(input_ids=input_ids, **kwargs)
        output.logits = output.logits + input_ids[0, -1].float().cos()
        return output


class Ahead(LlamaForCausalLM):
    """Adds a little of the mean of all embeddings to its logits."""

    def forward(self, input_ids: Tensor, **kwargs: Any) -> Any:
        output = super().forward(input_ids=input_ids, **kwargs)
        mean = self.model.embed_tokens(input_ids).mean(1)
        output.logits = output.logits + 0.1 * self.lm_head(mean)
        return output


def test_rounding_is_told_from_looking_ahead() -> None:
    torch.manual_seed(0)
    check_causal(Rounding(CONFIGS["llama"]()))
    with pytest.raises(ModelError, match="Ahead is not causal"):
        check_causal(Ahead(CONFIGS["llama"]()))


def test_without_a_gradient_a_leak_to_all_tokens_is_still_seen() -> None:
    model = tiny_model(is_causal=False, scale=4.0)
    embedding = model.get_input_embeddings()
    # As a kernel for inference alone: its result has no gradient.
    model.model.layers[0].register_forward_hook(lambda _, __, out: out.detach())
    model.model.layers[1].register_forward_hook(lambda _, __, out: out.detach())
    with pytest.raises(ModelError, match="is not causal"):
        check_causal(model)
    assert model.get_input_embeddings() is embedding


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", [*CONFIGS, *MOE])
def test_causal_models_pass_and_stay_as_they_were(family: str, dtype: torch.dtype) -> None:
    model = tiny_model(family, scale=3.0).to(dtype).train()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "router" in name or name.endswith("mlp.gate.weight"):
                parameter.zero_()  # every choice of experts is a tie
    state = torch.random.get_rng_state()
    check_causal(model)
    assert model.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_model_without_a_head_is_named_as_such(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="LlamaModel has no output embeddings"):
        trainer(tmp_path, LlamaModel(CONFIGS["llama"]()))


def test_adapters_and_weights_elsewhere() -> None:
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])
    check_causal(get_peft_model(tiny_model(), lora))
    with torch.device("meta"):
        check_causal(tiny_model())
