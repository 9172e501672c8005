"""The reference in its forms, and the references that cannot be one."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import PreTrainedTokenizerFast

from prefkit.errors import ModelError
from prefkit.model.adapters import changes_model, check_adapter
from prefkit.model.head.fused import install
from prefkit.model.reference.policy import (
    Reference,
    check_tokenizers,
    check_transforms,
    check_vocabularies,
)
from prefkit_kernels import token_stats
from tests.train.trainer_cases import byte_tokenizer, tiny_model

IDS = torch.tensor([[5, 9, 200, 31, 7, 8]])
INPUTS = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
ROWS = torch.tensor([1, 2, 4])
TARGETS = IDS[0, ROWS + 1]


def direct(model: Any) -> torch.Tensor:
    """(3, V) log-probs of the rows from the model's own logits."""
    with torch.no_grad():
        return model(**INPUTS).logits[0, ROWS].log_softmax(-1)


@pytest.mark.parametrize("family", ["llama", "gemma2", "cohere", "granite"])
def test_logp_is_the_models_own(family: str) -> None:
    model = tiny_model(family, scale=4.0)
    want = direct(model.eval()).gather(1, TARGETS[:, None])[:, 0]
    model.train()
    got = Reference(model, install(model)).logp(INPUTS, ROWS, TARGETS)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    assert model.training
    assert not got.requires_grad


@pytest.mark.parametrize(
    ("ours", "theirs"), [("llama", "granite"), ("granite", "cohere"), ("gemma2", "gemma2")]
)
def test_kl_operands_of_another_architecture(ours: str, theirs: str) -> None:
    """Other scale of the logits, other width, more padding in the vocabulary."""
    policy = install(tiny_model(ours, seed=1, scale=3.0))
    model = tiny_model(theirs, scale=3.0, vocab_size=272, hidden_size=24, head_dim=12).eval()
    reference = Reference(model, install(model))
    operands = reference.operands(INPUTS, ROWS, policy.transform, policy.vocab_size)
    hidden = torch.randn(3, 16)
    stats = token_stats(
        hidden,
        policy.module.weight,
        TARGETS,
        outputs=("ref_logp", "kl"),
        logit_scale=policy.transform.logit_scale,
        softcap=policy.transform.softcap,
        **operands,
    )
    with torch.no_grad():
        logits = model(**INPUTS).logits[0, ROWS, : policy.vocab_size].double()
        ref = logits.log_softmax(-1)
        mine = policy.transform(hidden.double() @ policy.module.weight.double().T).log_softmax(-1)
    want = (ref.exp() * (ref - mine)).sum(1).float()
    torch.testing.assert_close(stats.kl, want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        stats.ref_logp, ref.gather(1, TARGETS[:, None])[:, 0].float(), rtol=1e-4, atol=1e-5
    )


def lora_model(**options: Any) -> Any:
    return get_peft_model(
        tiny_model(scale=3.0), LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear")
    )


def test_adapter_off_is_the_base_model_and_comes_back_on() -> None:
    model = lora_model()
    want = direct(tiny_model(scale=3.0)).gather(1, TARGETS[:, None])[:, 0]
    for name, value in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.3)
    with_adapter = direct(model).gather(1, TARGETS[:, None])[:, 0]
    reference = Reference(model, install(model), adapter_owner=model)
    got = reference.logp(INPUTS, ROWS, TARGETS)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    assert (with_adapter - want).abs().max() > 0.01
    torch.testing.assert_close(direct(model).gather(1, TARGETS[:, None])[:, 0], with_adapter)


def test_a_fresh_adapter_is_told_from_a_trained_one() -> None:
    model = lora_model()
    assert not changes_model(model)
    for name, value in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value)
    assert changes_model(model)


def test_prompt_adapters_are_refused() -> None:
    prompt = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(ModelError, match="LoRA"):
        check_adapter(get_peft_model(tiny_model(), prompt))


def test_vocabularies() -> None:
    policy, padded = install(tiny_model()), install(tiny_model(vocab_size=272))
    check_vocabularies(policy, padded, tokens=258)  # padding beyond the tokenizer
    with pytest.raises(ModelError, match="264"):
        check_vocabularies(policy, padded, tokens=270)


def test_softcaps() -> None:
    with pytest.raises(ModelError, match="softcap"):
        check_transforms(install(tiny_model("gemma2")), install(tiny_model()))


def renamed(**ids: int) -> PreTrainedTokenizerFast:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(list(ids))
    return tokenizer


def test_tokenizers() -> None:
    check_tokenizers(byte_tokenizer(), byte_tokenizer())
    check_tokenizers(byte_tokenizer(), renamed(extra=258))  # a token more at the end
    with pytest.raises(ModelError, match="another tokenizer"):
        check_tokenizers(renamed(one=258, two=259), renamed(two=258, one=259))
    with pytest.raises(ModelError, match="one of the two only"):
        check_tokenizers(byte_tokenizer(), renamed(**{f"token{i}": i for i in range(40)}))
