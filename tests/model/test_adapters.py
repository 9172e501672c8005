"""A frozen copy of an adapter computes what the adapter computed, and stays so."""

import copy
from typing import Any

import peft
import pytest
import torch
from peft import LoraConfig, PeftModel

from prefkit.errors import ModelError
from prefkit.model.adapters import REFERENCE, freeze_copy
from prefkit.model.fsdp_units import adapter_chosen
from tests.model.test_adapter_reference import IDS, SOUND, adapted
from tests.train.trainer_cases import tiny_model


def moved(model: Any, seed: int) -> Any:
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def skip_in_old_peft(of_parameters: bool) -> None:
    if of_parameters and tuple(map(int, peft.__version__.split(".")[:2])) < (0, 20):
        pytest.skip("PEFT puts two adapters with target_parameters on a model from 0.20 on")


@pytest.mark.parametrize("kind", SOUND)
def test_a_copy_stays_what_the_adapter_was(kind: str) -> None:
    skip_in_old_peft(kind == "target_parameters")
    model = moved(adapted(copy.deepcopy(SOUND[kind])), seed=3)
    training = [name for name, value in model.named_parameters() if value.requires_grad]
    before = logits(model)
    freeze_copy(model)
    assert [name for name, value in model.named_parameters() if value.requires_grad] == training
    after = logits(moved(model, seed=4))
    assert not torch.equal(after, before)
    with adapter_chosen(model, REFERENCE):
        assert torch.equal(logits(model), before)
        now = [name for name, value in model.named_parameters() if value.requires_grad]
        assert now == training
    assert torch.equal(logits(model), after)


def test_a_new_copy_replaces_the_old_one() -> None:
    model = moved(adapted(SOUND["lora"]), seed=3)
    freeze_copy(model)
    before = logits(moved(model, seed=4))
    freeze_copy(model)
    with adapter_chosen(model, REFERENCE):
        assert torch.equal(logits(model), before)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_an_adapter_that_changed_its_base_is_copied_without_changing_it_again(init: str) -> None:
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], init_lora_weights=init)
    model = adapted(lora)
    before = logits(moved(model, seed=3))
    freeze_copy(model)
    assert torch.equal(logits(model), before)
    with adapter_chosen(model, REFERENCE):
        assert torch.equal(logits(model), before)


def test_an_adapter_in_bfloat16_is_copied_as_such() -> None:
    base = tiny_model(scale=3.0).to(torch.bfloat16)
    model = PeftModel(base, copy.deepcopy(SOUND["lora"]), autocast_adapter_dtype=False)
    model = moved(model, seed=3)
    freeze_copy(model)
    kinds = {p.dtype for name, p in model.named_parameters() if REFERENCE in name}
    assert kinds == {torch.bfloat16}


def test_what_peft_cannot_copy_is_refused() -> None:
    model = adapted(LoraConfig(task_type="CAUSAL_LM", bias="lora_only"), attention_bias=True)
    with pytest.raises(ModelError, match=r"supports only 1 adapter with bias.*prefkit merge"):
        freeze_copy(moved(model, seed=3))
