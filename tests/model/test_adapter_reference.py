"""The model without its adapter is a reference only if nothing that trains moves it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from peft import (
    HRAConfig,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoraConfig,
    OFTConfig,
    TrainableTokensConfig,
    VeraConfig,
    get_peft_model,
)

from prefkit.errors import ModelError
from prefkit.model.adapters import check_adapter
from prefkit.model.fsdp_units import adapter_off
from tests.train.trainer_cases import tiny_model

IDS = torch.tensor([[5, 9, 200, 31, 7, 8]])
QV: dict[str, Any] = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj"]}
NORM = "base_model.model.model.norm.weight"

SOUND: dict[str, Any] = {
    "lora": LoraConfig(**QV),
    "dora": LoraConfig(**QV, use_dora=True),
    "modules_to_save": LoraConfig(**QV, modules_to_save=["norm", "embed_tokens"]),
    "trainable tokens beside lora": LoraConfig(**QV, trainable_token_indices=[5, 9]),
    "target_parameters": LoraConfig(
        task_type="CAUSAL_LM", target_modules=["q_proj"], target_parameters=["o_proj.weight"]
    ),
    "vera": VeraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], r=4),
    "loha": LoHaConfig(**QV, r=2),
    "oft": OFTConfig(**QV, oft_block_size=4),
    "hra": HRAConfig(**QV),
    "ia3": IA3Config(**QV, feedforward_modules=[]),
    "ln tuning": LNTuningConfig(task_type="CAUSAL_LM", target_modules=["norm"]),
    "trainable tokens": TrainableTokensConfig(task_type="CAUSAL_LM", token_indices=[5, 9]),
}


def adapted(config: Any, **changes: Any) -> Any:
    return get_peft_model(tiny_model(scale=3.0, **changes), config)


def moved_by_training(model: Any) -> float:
    """How far the logits without the adapter go when all that trains is changed."""

    def reference() -> torch.Tensor:
        with torch.no_grad(), adapter_off(model):
            return model.eval()(input_ids=IDS).logits

    before = reference()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return float((reference() - before).abs().max())


@pytest.mark.parametrize("kind", SOUND)
def test_adapters_of_every_kind_are_accepted_and_leave_the_reference(kind: str) -> None:
    model = adapted(SOUND[kind])
    training = {name for name, value in model.named_parameters() if value.requires_grad}
    check_adapter(model)
    assert {name for name, value in model.named_parameters() if value.requires_grad} == training
    assert moved_by_training(model) == 0


def with_norm_unfrozen() -> Any:
    model = adapted(LoraConfig(**QV))
    model.get_parameter(NORM).requires_grad_(True)
    return model


MOVING: dict[str, Any] = {
    "bias of its layers": (
        lambda: adapted(LoraConfig(**QV, bias="lora_only"), attention_bias=True),
        "q_proj",
    ),
    "all biases": (lambda: adapted(LoraConfig(**QV, bias="all"), attention_bias=True), "bias"),
    "a norm": (with_norm_unfrozen, NORM),
}


@pytest.mark.parametrize("case", MOVING)
def test_what_trains_beside_the_adapter_is_refused_by_name(case: str) -> None:
    make, word = MOVING[case]
    with pytest.raises(ModelError, match="pass ref_model") as error:
        check_adapter(make())
    assert word in str(error.value)
    assert moved_by_training(make()) > 1e-3


def test_a_sound_adapter_is_looked_at_again_when_something_changed() -> None:
    model = adapted(LoraConfig(**QV))
    with calls_of(model, "disable_adapter") as calls:
        check_adapter(model)
        check_adapter(model)
        assert len(calls) == 1
        model.get_parameter(NORM).requires_grad_(True)
        for _ in range(2):
            with pytest.raises(ModelError, match=NORM):
                check_adapter(model)
        model.get_parameter(NORM).requires_grad_(False)
        check_adapter(model)  # as it was when it was sound
        assert len(calls) == 3
        model.add_adapter("other", LoraConfig(**QV))
        check_adapter(model)
        assert len(calls) == 4


@contextmanager
def calls_of(model: Any, name: str) -> Iterator[list[str]]:
    """Notes each call of a method of the model in the block."""
    calls, method = [], getattr(model, name)

    def noted(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        return method(*args, **kwargs)

    setattr(model, name, noted)
    yield calls
    delattr(model, name)


def test_a_part_of_the_adapter_that_was_frozen_stays_frozen() -> None:
    model = adapted(LoraConfig(**QV))
    frozen = [value for name, value in model.named_parameters() if "lora_A" in name]
    for value in frozen:
        value.requires_grad_(False)
    check_adapter(model)
    with adapter_off(model):
        assert not any(value.requires_grad for value in frozen)
    assert not any(value.requires_grad for value in frozen)
