"""`preference_loss` against the definition, against TRL, through wrappers; what it refuses."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import BertConfig, BertLMHeadModel

from prefkit import DPO, KTO, preference_loss, reference_logp, stream_of
from prefkit.errors import ModelError, PrefkitError
from tests.loop.loop_cases import OBJECTIVES, batch_of, by_definition, padded, weighted
from tests.train.trainer_cases import tiny_model

BATCH = batch_of([0, 1, 2])
SMALL_BERT = {"vocab_size": 264, "hidden_size": 16, "intermediate_size": 16}
SMALL_BERT |= {"num_hidden_layers": 1, "num_attention_heads": 2}


def two_models(family: str = "llama", **changes: Any) -> tuple[Any, Any]:
    """A policy and a frozen reference in fp64, far from uniform and from each other."""
    policy, reference = (
        tiny_model(family, seed=seed, scale=4.0, **changes).double() for seed in (0, 1)
    )
    return policy, reference.requires_grad_(False)


def compare(ours: nn.Module, theirs: nn.Module, bound: float) -> None:
    """Gradients, relative to the largest of all."""
    scale = max(float(p.grad.abs().max()) for p in theirs.parameters() if p.grad is not None)
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert (mine.grad is None) == (other.grad is None), name
        if other.grad is not None:
            assert (mine.grad - other.grad).abs().max() <= bound * scale, name


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("family", ["llama", "llama-tied", "gemma2", "cohere", "granite"])
def test_loss_and_gradients_are_those_of_whole_logits(family: str, name: str) -> None:
    """Softcap, scale and bias of the model are taken without being asked for."""
    policy, reference = two_models(family)
    plain, objective = copy.deepcopy(policy), OBJECTIVES[name]
    given = reference if objective.needs_reference else None
    out = preference_loss(policy, BATCH, objective, given)
    want = by_definition(plain, reference, BATCH, objective)
    assert out.loss.item() == pytest.approx(want.item(), rel=1e-10)
    out.loss.backward()
    want.backward()
    compare(policy, plain, 1e-9)
    assert "loss" not in out.metrics
    assert out.stats.logp.shape == BATCH["targets"].shape
    assert not out.stats.logp.requires_grad


def test_a_head_with_a_bias_and_a_mean_over_more_pairs() -> None:
    policy, reference = two_models()
    policy.set_output_embeddings(nn.Linear(16, 264).double())
    plain = copy.deepcopy(policy)
    out = preference_loss(policy, BATCH, DPO(beta=0.5), reference, num_pairs=7.5)
    want = by_definition(plain, reference, BATCH, DPO(beta=0.5), num_pairs=7.5)
    assert out.loss.item() == pytest.approx(want.item(), rel=1e-10)
    out.loss.backward()
    want.backward()
    compare(policy, plain, 1e-9)


@pytest.mark.parametrize("name", ["dpo", "tdpo"])
def test_an_adapter_switched_off_is_the_reference(name: str) -> None:
    base, _ = two_models()
    config = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", init_lora_weights=False)
    policy = get_peft_model(copy.deepcopy(base), config)
    plain = copy.deepcopy(policy)
    out = preference_loss(policy, BATCH, OBJECTIVES[name])
    want = by_definition(plain, base, BATCH, OBJECTIVES[name])
    assert out.loss.item() == pytest.approx(want.item(), rel=1e-9)
    out.loss.backward()
    want.backward()
    compare(policy, plain, 1e-9)
    again = preference_loss(policy, BATCH, OBJECTIVES[name], reference=policy).loss
    assert again.item() == pytest.approx(want.item(), rel=1e-9)


def test_kto_estimates_its_reference_point_from_what_the_batch_brings() -> None:
    policy, reference = two_models()
    beside = {**batch_of([3]), "pair_index": torch.arange(2)}  # two responses
    ratio = reference_logp(policy, beside) - reference_logp(reference, beside)
    point = ((beside["weights"] * ratio).sum() / 2).clamp(min=0)
    assert point > 0
    out = preference_loss(policy, {**BATCH, "mismatched": beside}, KTO(beta=0.5), reference)
    want = by_definition(policy, reference, BATCH, KTO(beta=0.5), reference_point=point)
    assert out.loss.item() == pytest.approx(want.item(), rel=1e-10)
    with pytest.raises(PrefkitError, match="with_mismatched"):
        preference_loss(policy, BATCH, KTO(beta=0.5), reference)
    cached = {**BATCH, "mismatched": beside, "ref_logp": reference_logp(reference, BATCH)}
    with pytest.raises(PrefkitError, match="Drop ref_logp"):
        preference_loss(policy, cached, KTO(beta=0.5))


def test_cached_log_probs_are_the_reference() -> None:
    policy, reference = two_models("gemma2")
    cached = {**BATCH, "ref_logp": reference_logp(reference, BATCH)}
    want = preference_loss(policy, BATCH, DPO(beta=0.5), reference)
    got = preference_loss(policy, cached, DPO(beta=0.5))
    assert torch.equal(got.loss, want.loss)
    assert got.metrics.keys() == want.metrics.keys()


def test_neither_forward_leaves_a_trace() -> None:
    policy, reference = two_models()
    reference.train()
    reference.requires_grad_(True)  # nobody froze it: still no gradient, and evaluation mode inside
    preference_loss(policy, BATCH, DPO(beta=0.5), reference).loss.backward()
    assert all(p.grad is None for p in reference.parameters())
    assert reference.training


@pytest.mark.parametrize("how", ["autocast", "checkpointing", "compiled"])
def test_through_what_loops_put_around_a_model(how: str) -> None:
    policy, reference = (model.float() for model in two_models())
    plain, wrapped = copy.deepcopy(policy), policy
    if how == "checkpointing":
        policy.train().gradient_checkpointing_enable({"use_reentrant": False})
    if how == "compiled":
        wrapped = torch.compile(policy, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        out = preference_loss(wrapped, BATCH, OBJECTIVES["tdpo"], reference)
    want = by_definition(plain, reference, BATCH, OBJECTIVES["tdpo"])
    assert out.loss.dtype == torch.float32
    rounding = 2**-5 if how == "autocast" else 1e-5  # of bf16 activations through the model
    assert out.loss.item() == pytest.approx(want.item(), rel=rounding)
    out.loss.backward()
    want.backward()
    compare(policy, plain, 0.1 if how == "autocast" else 2e-5)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])  # relative positions, and absolute ones
def test_padding_changes_nothing_on_either_side(family: str, side: str) -> None:
    policy, reference = (model.eval() for model in two_models(family))  # no dropout
    dpo = DPO(beta=0.5)
    want = sum(by_definition(policy, reference, batch_of([pair]), dpo) for pair in range(4))
    rows = weighted([0, 1, 2, 3])
    if side == "left":
        behind = (rows["attention_mask"] == 0).sum(1).tolist()
        for name, value in rows.items():
            moved = [row.roll(shift) for row, shift in zip(value, behind, strict=True)]
            rows[name] = torch.stack(moved)
    batch = stream_of(rows, "interleaved")
    got = preference_loss(policy, batch, dpo, reference).loss
    assert got.item() == pytest.approx(want.item() / 4, rel=1e-10)


def test_a_batch_of_trl_gives_the_loss_and_gradients_of_trl(tmp_path: Path) -> None:
    pytest.importorskip("trl", reason="TRL is not installed")
    from tests.loss.test_against_trl import BETA, Run

    run = Run(str(tmp_path), tie=False)
    batch = stream_of(run.kept)
    for name in ("sigmoid", "ipo", "sigmoid_norm"):
        expected, grads = run.theirs(loss_type=[name])
        run.policy.zero_grad()
        objective = DPO(beta=BETA, loss_type=[name])
        out = preference_loss(run.policy, batch, objective, run.reference)
        out.loss.backward()
        assert out.loss.item() == pytest.approx(expected, rel=2e-6)
        assert grads is not None
        scale = max(float(grad.abs().max()) for grad in grads.values())
        found = dict(run.policy.named_parameters())
        for parameter, grad in grads.items():
            assert (found[parameter].grad - grad).abs().max() <= 1e-5 * scale, parameter


def refusals() -> dict[str, tuple[Any, ...]]:
    """Arguments that cannot be meant, and words of what is said about them."""
    policy, reference = two_models()
    dpo, tdpo, simpo = OBJECTIVES.values()
    cached = {**BATCH, "ref_logp": BATCH["weights"]}
    plain = padded([0])
    capped = two_models("gemma2")[1]
    bias = get_peft_model(
        tiny_model(), LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], bias="all")
    )
    bias.base_model.model.model.norm.weight.requires_grad_(True)
    return {
        "no reference": ((policy, BATCH, dpo), ["needs a reference", "reference_logp"]),
        "itself": ((policy, BATCH, dpo, policy), ["policy itself", "deepcopy"]),
        "twice": ((policy, cached, dpo, reference), ["ref_logp", "leave reference out"]),
        "for nothing": ((policy, BATCH, simpo, reference), ["reads no reference"]),
        "KL from a cache": ((policy, cached, tdpo), ["whole distribution"]),
        "KL of another softcap": ((policy, BATCH, tdpo, capped), ["softcap", "3.0"]),
        "a batch as collators make it": ((policy, plain, dpo, reference), ["stream_of"]),
        "more than the adapter trains": ((bias, BATCH, dpo), ["norm.weight", "adapter off"]),
        "a margin that no pair brings": (
            (policy, BATCH, DPO(margin_weight=1.0), reference),
            ["margins"],
        ),
        "groups that no pair names": (
            (policy, BATCH, DPO(loss_type=["plackett_luce"]), reference),
            ["groups"],
        ),
        "nothing that is scored": (
            (policy, {**BATCH, "positions": BATCH["positions"][:0]}, simpo),
            ["no scored token", "Other processes", "drop_last"],
        ),
        "nothing that has a weight": (
            (policy, {**BATCH, "num_scored": 0}, simpo),
            ["no scored token"],
        ),
        "a model that looks ahead": (
            (BertLMHeadModel(BertConfig(**SMALL_BERT)), BATCH, simpo),
            ["BertLMHeadModel is not causal", "is_decoder=True"],
        ),
        "a body": ((policy.model, BATCH, simpo), ["LlamaModel", "AutoModelForCausalLM"]),
    }


@pytest.mark.parametrize("case", refusals())
def test_what_cannot_be_meant_is_refused(case: str) -> None:
    arguments, words = refusals()[case]
    with pytest.raises(ValueError) as error:
        preference_loss(*arguments)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_forward_that_another_library_replaced_is_named() -> None:
    policy, reference = two_models()
    preference_loss(policy, BATCH, DPO(beta=0.5), reference)
    own = type(policy).forward

    def patched(self: Any, *args: Any, prefkit_request: Any = None, **kwargs: Any) -> Any:
        return own(self, *args, **kwargs)

    policy.forward = patched.__get__(policy)
    with pytest.raises(ModelError, match="replaced"):
        preference_loss(policy, BATCH, DPO(beta=0.5), reference)
    assert issubclass(ModelError, PrefkitError)
