"""ORPO against TRL's ORPOTrainer on its own batch, in fp32.

TRL takes the negative log-likelihood over prompt and response, prefkit over the response. With a
prompt of one token, which nothing predicts, and one pair in the batch these are the same.
"""

import pytest
import torch
from datasets import Dataset
from torch import Tensor

from prefkit import ORPO, fused_preference_loss
from tests.loss.test_against_trl import byte_tokenizer, small_llama

orpo = pytest.importorskip("trl.experimental.orpo", reason="TRL has no ORPO trainer")
ROWS = [
    {"prompt": "2", "chosen": " and 2 are 4", "rejected": " and 2, I think, are 5"},
    {"prompt": "Count: ", "chosen": "1 2 3", "rejected": "1 3 2 4"},
]


def trl_trainer(rows: list[dict[str, str]], folder: str) -> tuple[object, dict[str, Tensor]]:
    args = orpo.ORPOConfig(
        output_dir=folder,
        per_device_train_batch_size=len(rows),
        use_cpu=True,
        bf16=False,
        report_to="none",
        gradient_checkpointing=False,
        beta=0.3,
        disable_dropout=True,
    )
    trainer = orpo.ORPOTrainer(
        model=small_llama(False),
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=byte_tokenizer(),
    )
    return trainer, next(iter(trainer.get_train_dataloader()))


def ours(batch: dict[str, Tensor]) -> tuple[object, torch.nn.Module]:
    """Our loss of TRL's batch, in which each side is padded by itself."""
    model = small_llama(False)
    hidden, targets, segments = [], [], []
    for side, name in enumerate(("chosen", "rejected")):
        ids, labels = batch[f"{name}_input_ids"], batch[f"{name}_labels"][:, 1:]
        states = model.model(input_ids=ids, attention_mask=batch[f"{name}_attention_mask"])
        number = 2 * torch.arange(len(ids))[:, None] + side
        hidden.append(states.last_hidden_state[:, :-1].flatten(0, 1))
        targets.append(ids[:, 1:].flatten())
        segments.append(torch.where(labels == -100, -1, number).flatten())
    stream = (torch.cat(hidden), model.lm_head.weight, torch.cat(targets), torch.cat(segments))
    return fused_preference_loss(*stream, ORPO(beta=0.3)), model


def test_one_pair_behind_one_token_has_the_loss_and_gradients_of_trl(tmp_path) -> None:
    trainer, batch = trl_trainer(ROWS[:1], str(tmp_path))
    loss, metrics = trainer.get_batch_loss_metrics(trainer.model, batch)
    loss.backward()
    out, model = ours(batch)
    out.loss.backward()
    assert out.loss.item() == pytest.approx(loss.item(), rel=1e-5)
    for name in ("nll_loss", "log_odds_ratio", "log_odds_chosen", "rewards/chosen"):
        assert out.metrics[name].item() == pytest.approx(metrics[name], rel=1e-5), name
    expected = {name: p.grad for name, p in trainer.model.named_parameters()}
    scale = max(float(grad.abs().max()) for grad in expected.values())
    for name, parameter in model.named_parameters():
        assert (parameter.grad - expected[name]).abs().max() <= 1e-4 * scale, name


def test_longer_prompts_and_more_pairs_change_the_likelihood_alone(tmp_path) -> None:
    trainer, batch = trl_trainer(ROWS, str(tmp_path))
    _, metrics = trainer.get_batch_loss_metrics(trainer.model, batch)
    out, _ = ours(batch)
    for name in ("log_odds_ratio", "log_odds_chosen", "rewards/chosen", "rewards/rejected"):
        assert out.metrics[name].item() == pytest.approx(metrics[name], rel=1e-5), name
    assert out.metrics["nll_loss"].item() != pytest.approx(metrics["nll_loss"], rel=1e-3)
