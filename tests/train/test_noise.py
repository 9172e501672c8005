"""NEFTune's noise has the strength of each sequence's own length, however rows are laid out."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.integrations.neftune import neftune_post_forward_hook

from prefkit.loop.forward import ask_head
from prefkit.train.models.noise import noisy_embeddings
from tests.train import test_supervised
from tests.train.trainer_cases import TREE_ROWS, logs_of, tiny_model, trainer

ALPHA = 5.0
LAYOUTS: dict[str, dict[str, Any]] = {
    "padded": {"disable_dropout": False},
    "separate": {"layout": "separate"},
    "shared": {"layout": "shared"},
    "tree": {"layout": "tree"},
    "packed trees": {"layout": "tree", "tokens_per_batch": 200},
}


def seen_and_clean(run: Any, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """(R, L, D) embeddings of the policy in a training forward, with and without their noise."""
    torch.manual_seed(0)
    embeddings, found = run.model.get_input_embeddings(), []
    run.model.train()
    with noisy_embeddings(run.model, ALPHA), torch.no_grad():
        handle = embeddings.register_forward_hook(lambda *args: found.append(args[-1]))
        ask_head(run.model, batch, lambda hidden, *_: (hidden.sum(), {}), run.head)
        handle.remove()
    return found[0], embeddings(batch["input_ids"])


def own_lengths(batch: Any) -> torch.Tensor:
    """(R, L) tokens of the longest sequence of each token, 0 for padding, by listing all paths."""
    if "stream" not in batch:
        mask = batch["attention_mask"]
        return mask * mask.sum(1, keepdim=True)
    lengths = torch.zeros_like(batch["input_ids"])
    for path in batch["stream"].paths():
        count = sum(map(len, path))
        for span in path:
            part = lengths[0, span.start : span.stop]
            lengths[0, span.start : span.stop] = part.clamp_min(count)
    return lengths


@pytest.mark.parametrize("layout", LAYOUTS)
def test_noise_is_of_the_sequences_own_length(layout: str, tmp_path: Path) -> None:
    options = dict(LAYOUTS[layout])
    model = tiny_model(attention_dropout=0.1 if layout == "padded" else 0.0)
    run = trainer(tmp_path, model, TREE_ROWS, neftune_noise_alpha=ALPHA, **options)
    assert layout.endswith(run.layout) or layout == "packed trees"
    batch = next(iter(run.get_train_dataloader()))
    seen, clean = seen_and_clean(run, batch)
    lengths, noise = own_lengths(batch), (seen - clean).abs()
    assert len(lengths.unique()) > 2
    for length in lengths[lengths > 0].unique():
        of_length = noise[lengths == length]
        bound = ALPHA / (length * clean.shape[-1]) ** 0.5
        assert of_length.max() <= bound * 1.0001
        assert of_length.max() > bound * 0.9


def test_trainers_own_noise_is_weaker_in_packed_rows(tmp_path: Path) -> None:
    """What this module is for: the row's length in place of the sequence's."""
    run = trainer(tmp_path, tiny_model(), TREE_ROWS, tokens_per_batch=200)
    batch = next(iter(run.get_train_dataloader()))
    module = run.model.get_input_embeddings().train()
    module.neftune_noise_alpha = ALPHA
    clean = module(batch["input_ids"])
    noise = (neftune_post_forward_hook(module, None, clean) - clean).abs().max()
    longest = int(own_lengths(batch).max())
    assert noise < 0.5 * ALPHA / (longest * clean.shape[-1]) ** 0.5


def hooks_of(model: Any) -> int:
    return sum(len(x._forward_hooks) + len(x._forward_pre_hooks) for x in model.modules())


def test_noise_comes_into_training_alone_and_goes_again(tmp_path: Path) -> None:
    run = trainer(tmp_path, tiny_model(scale=3.0), neftune_noise_alpha=ALPHA, max_steps=2)
    hooks = [
        len(part._forward_hooks) + len(part._forward_pre_hooks) for part in run.model.modules()
    ]
    before = run.evaluate(run.train_dataset)
    assert before["eval_loss"] == pytest.approx(0.693147, abs=1e-5)
    run.train()
    assert abs(logs_of(run)[0]["loss"] - 0.693147) > 1e-3
    after = [
        len(part._forward_hooks) + len(part._forward_pre_hooks) for part in run.model.modules()
    ]
    assert after == hooks


def test_solutions_in_one_row_have_their_own_lengths(tmp_path: Path) -> None:
    run = test_supervised.trainer(tmp_path, neftune_noise_alpha=ALPHA)
    batch = next(iter(run.get_train_dataloader()))
    assert "stream" in batch
    seen, clean = seen_and_clean(run, batch)
    lengths = own_lengths(batch)
    bound = ALPHA / (lengths * clean.shape[-1]) ** 0.5
    share = (seen - clean).abs().amax(-1) / bound
    assert share.max() <= 1.0001
    assert share.mean() > 0.8
