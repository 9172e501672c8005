"""A trained adapter is told from a fresh one by its weights, whatever a few logits say."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, IA3Config, LoraConfig, get_peft_model

from prefkit.model.adapters import REFERENCE, changes_model, freeze_copy
from prefkit.model.fsdp_units import adapter_chosen, adapter_off
from tests.model.test_adapter_reference import QV, SOUND, adapted
from tests.model.test_adapters import skip_in_old_peft
from tests.train.trainer_cases import tiny_model

RARE = [200, 201]  # tokens that are not among the first few
OF_TOKENS = LoraConfig(**QV, trainable_token_indices=RARE)

# Each kind, and the parameter of it that training moves last.
KNOWN: dict[str, tuple[Any, str]] = {
    "lora": (LoraConfig(**QV), "lora_B"),
    "of embeddings": (
        LoraConfig(task_type="CAUSAL_LM", target_modules=["embed_tokens"]),
        "lora_embedding_A",
    ),
    "with a bias of its own": (LoraConfig(**QV, lora_bias=True), "lora_B.default.bias"),
    "dora": (LoraConfig(**QV, use_dora=True), "lora_magnitude_vector"),
    "dora of embeddings": (
        LoraConfig(task_type="CAUSAL_LM", target_modules=["embed_tokens"], use_dora=True),
        "lora_magnitude_vector",
    ),
    "adalora": (AdaLoraConfig(**QV, total_step=10), "lora_E"),
    "of parameters": (SOUND["target_parameters"], "lora_B"),
    "modules_to_save": (SOUND["modules_to_save"], "norm.modules_to_save"),
    "tokens beside lora": (
        OF_TOKENS,
        "trainable_tokens_delta",
    ),
    "tokens": (SOUND["trainable tokens"], "trainable_tokens_delta"),
}


def moved(model: Any, word: str, by: float) -> Any:
    """A little is added to the first parameter of that name."""
    value = next(value for name, value in model.named_parameters() if word in name)
    assert value.requires_grad
    with torch.no_grad():
        value.view(-1)[-1] += by
    return model


@pytest.mark.parametrize("kind", KNOWN)
def test_a_fresh_adapter_changes_nothing_and_a_trained_one_is_noticed(kind: str) -> None:
    config, word = KNOWN[kind]
    model = adapted(copy.deepcopy(config), attention_bias="bias" in kind)
    assert not changes_model(model)
    assert changes_model(moved(model, word, by=1e-4))


@pytest.mark.parametrize("kind", ["lora", "dora", "modules_to_save", "tokens"])
@pytest.mark.parametrize("autocast", [True, False])
def test_a_fresh_adapter_of_a_model_in_bf16(kind: str, autocast: bool) -> None:
    base = tiny_model(scale=3.0).to(torch.bfloat16)
    config = copy.deepcopy(KNOWN[kind][0])
    assert not changes_model(get_peft_model(base, config, autocast_adapter_dtype=autocast))


MISSED: dict[str, tuple[Callable[[], Any], str]] = {
    "tokens that are not among the first": (
        lambda: adapted(copy.deepcopy(OF_TOKENS)),
        "trainable_tokens_delta",
    ),
    "logits with an offset in common": (lambda: with_an_offset(LoraConfig(**QV)), "lora_B"),
}


def with_an_offset(config: Any) -> Any:
    """A model all of whose logits are near −1000: a change by one is little beside that."""
    model = tiny_model(scale=3.0)
    model.set_output_embeddings(torch.nn.Linear(16, 264))
    with torch.no_grad():
        model.lm_head.bias.fill_(-1000.0)
    return get_peft_model(model, config)


@pytest.mark.parametrize("case", MISSED)
def test_what_the_first_logits_hardly_show_is_noticed(case: str) -> None:
    make, word = MISSED[case]
    model, ids = make(), torch.tensor([[*RARE, 7]])
    with torch.no_grad():
        for name, value in model.named_parameters():
            if word in name:
                value.add_(0.3 * torch.randn_like(value))
        on = model(input_ids=ids).logits
        with adapter_off(model):
            assert (on - model(input_ids=ids).logits).abs().max() > 0.1
    assert changes_model(model)


@pytest.mark.parametrize("kind", [k for k in SOUND if k not in ("lora", "dora")])
def test_a_fresh_adapter_of_any_kind_is_switched_off_or_copied(kind: str) -> None:
    skip_in_old_peft(kind == "target_parameters")
    model, ids = adapted(copy.deepcopy(SOUND[kind])).eval(), torch.tensor([[*RARE, 9, 263]])
    with torch.no_grad():
        before = model(input_ids=ids).logits
        if changes_model(model):
            freeze_copy(model)
            with adapter_chosen(model, REFERENCE):
                assert torch.equal(model(input_ids=ids).logits, before)
        else:
            with adapter_off(model):
                assert torch.equal(model(input_ids=ids).logits, before)


def test_an_unknown_kind_is_not_taken_for_untouched() -> None:
    assert changes_model(adapted(IA3Config(**QV, feedforward_modules=[])))


@pytest.mark.parametrize("kind", KNOWN)
def test_the_copy_of_a_trained_adapter_is_the_same_on_rare_tokens(kind: str) -> None:
    skip_in_old_peft(kind == "of parameters")
    config, word = KNOWN[kind]
    model, ids = adapted(copy.deepcopy(config)).eval(), torch.tensor([[*RARE, 9, 263]])
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.requires_grad and word.split(".")[0] in name:
                value.add_(0.1 * torch.randn_like(value))
        before = model(input_ids=ids).logits
        freeze_copy(model)
        with adapter_chosen(model, REFERENCE):
            assert torch.equal(model(input_ids=ids).logits, before)
        with adapter_off(model):
            assert not torch.equal(model(input_ids=ids).logits, before)
