"""What prefkit cannot compute, TRL does, with its own numbers; the reason is said once."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from prefkit.errors import ConfigError, ModelError
from tests.integrations.trl.cases import (
    check_logs,
    check_step,
    one_step,
    our_config,
    ours,
    theirs,
    trainer,
)
from tests.train.trainer_cases import SHAPE, VOCAB, tiny_model

MIXED: dict[str, Any] = {"loss_type": ["sigmoid", "robust"], "label_smoothing": 0.1}


class Shifted(LlamaForCausalLM):
    """Logits that are no scale and no softcap of the head's."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        if output.logits.shape[-1]:  # of the vocabulary
            output.logits = output.logits + torch.linspace(0, 9, output.logits.shape[-1])
        return output


class Doubled(torch.nn.Linear):
    """A head that is not what its weight says."""

    def forward(self, hidden: Any) -> Any:
        return 2 * super().forward(hidden)


def shifted() -> Any:
    torch.manual_seed(0)
    return Shifted(LlamaConfig(**SHAPE, vocab_size=VOCAB))


def doubled() -> Any:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, vocab_size=VOCAB))
    head = model.lm_head
    model.lm_head = Doubled(head.in_features, head.out_features, bias=False)
    model.lm_head.weight.data.copy_(head.weight.data)
    return model


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (shifted, "Shifted changes its logits after the head"),
        (doubled, "computes something else than hidden @ weight.T"),
    ],
)
def test_heads_that_cannot_be_fused(make: Any, reason: str, tmp_path: Path) -> None:
    got, want = (trainer(kind, tmp_path, make()) for kind in (ours(), theirs()))
    assert reason in got.prefkit_fallback
    check_step(one_step(got), one_step(want))


@pytest.mark.parametrize("causal", [(False, True), (True, False)])
def test_a_model_that_is_not_causal_is_refused(causal: tuple[bool, bool], tmp_path: Path) -> None:
    """The policy, or the reference: TRL scores tokens by a model that has read them."""
    policy, reference = (tiny_model(is_causal=one, scale=3.0) for one in causal)
    with pytest.raises(ModelError, match="LlamaForCausalLM is not causal"):
        trainer(ours(), tmp_path, policy, ref_model=reference)


def test_a_loss_that_is_not_prefkits_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="prefkit"):
        got = trainer(ours(), tmp_path, **MIXED, max_steps=3)
        got.train()
    said = [record.message for record in caplog.records if "in its own way" in record.message]
    assert said == [f"TRL computes the loss in its own way, because {got.prefkit_fallback}."]
    assert "label_smoothing is of 'robust' alone" in got.prefkit_fallback
    want = trainer(theirs(), tmp_path, **MIXED, max_steps=3)
    want.train()
    check_logs(got, want, later=1e-5)


def test_precomputed_references_of_such_a_loss(tmp_path: Path) -> None:
    options = {**MIXED, "precompute_ref_log_probs": True}
    got, want = (trainer(kind, tmp_path, **options) for kind in (ours(), theirs()))
    check_step(one_step(got), one_step(want))


def test_options_that_change_in_a_run(tmp_path: Path) -> None:
    """A callback may change β; a loss may even change to one that only TRL has, and back."""
    got, want = (trainer(kind, tmp_path) for kind in (ours(), theirs()))
    changes: list[dict[str, Any]] = [
        {"beta": 0.5},
        {"loss_types": ["sigmoid", "robust"], "label_smoothing": 0.2, "loss_weights": [1.0, 1.0]},
        {"loss_types": ["ipo"], "loss_weights": [1.0]},
    ]
    falls = []
    for change in changes:
        for made in (got, want):
            vars(made).update(change)
            made.model.zero_grad()
            made._metrics["train"].clear()
        check_step(one_step(got), one_step(want))
        falls.append(got.prefkit_fallback is not None)
    assert falls == [False, True, False]


def test_what_trl_cannot_do_instead_is_refused(tmp_path: Path) -> None:
    given = {"config": our_config(), "prefkit_method": "tdpo2"}
    with pytest.raises(ConfigError, match="which TRL cannot compute, and prefkit cannot here"):
        trainer(ours(), tmp_path, shifted(), **given)
    rows = [
        {"prompt": "a", "chosen": "b", "rejected": "c", "chosen_weights": [1.0, 1.0]},
    ]
    with pytest.raises(ConfigError, match="token weights, which TRL cannot read"):
        trainer(ours(), tmp_path, shifted(), rows=rows)


def test_a_layout_that_cannot_be_had(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    class Own(DataCollatorForPreference):
        pass

    options = {"config": our_config(), "prefkit_layout": "shared", "data_collator": Own(0)}
    with pytest.raises(ConfigError, match="prefkit_layout: shared cannot be had: the data_coll"):
        trainer(ours(), tmp_path, **options)
    with caplog.at_level(logging.WARNING, logger="prefkit"):
        made = trainer(ours(), tmp_path, data_collator=Own(0))
    assert "Rows are padded as TRL pads them, because the data_collator is a Own" in caplog.text
    assert made.prefkit_fallback is None
    assert "prefkit_row" not in next(iter(made.get_train_dataloader()))


def test_a_forward_that_is_replaced_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """By somebody's patch, say: TRL then does what it can with it."""
    got, want = (trainer(kind, tmp_path) for kind in (ours(), theirs()))
    for made in (got, want):
        model, inner = made.model, made.model.forward

        def forward(*args: Any, prefkit_request: Any = None, inner: Any = inner, **kw: Any) -> Any:
            return inner(*args, **kw)

        model.forward = forward
    assert got.prefkit_fallback is None
    check_step(one_step(got), one_step(want))
    expected = "the forward of LlamaForCausalLM was replaced after the trainer was made"
    assert got.prefkit_fallback == expected
    assert caplog.text.count(expected) == 1


def test_models_of_the_constructor_alone_are_let_go(tmp_path: Path) -> None:
    """TRL frees a reference that was only there to precompute, as under FSDP."""
    import gc
    import weakref

    made = trainer(ours(), tmp_path, precompute_ref_log_probs=True)
    kept = weakref.ref(made.ref_model)
    made.ref_model = None
    made.accelerator._models.clear()
    made._prefkit.forget_others()
    gc.collect()
    assert kept() is None
