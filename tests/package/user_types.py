"""What a user's type checker reads; never run. Lines that end in `# error` are mistakes."""

from typing import assert_type

import torch
from torch import Tensor

import prefkit
from prefkit import (
    DPO,
    TDPO,
    PreferenceConfig,
    PreferenceLoss,
    PreferenceTrainer,
    PrefkitError,
    fused_preference_loss,
)
from prefkit_kernels import TokenStats, pair_scores, token_stats

UNKNOWN = prefkit.DPOO  # error


def loss(hidden: Tensor, weight: Tensor, targets: Tensor, segments: Tensor) -> Tensor:
    out = fused_preference_loss(hidden, weight, targets, segments, DPO(beta=0.1, link="ipo"))
    assert_type(out, PreferenceLoss)
    assert_type(out.loss, Tensor)
    assert_type(out.metrics, dict[str, Tensor])
    assert_type(out.stats, TokenStats)
    fused_preference_loss(hidden, weight, targets, segments, "dpo")  # error
    return out.loss


def stats(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor | None:
    assert_type(TDPO(beta=0.1).beta, float)
    found = token_stats(hidden, weight, targets, outputs=("logp", "max_logp"))
    assert_type(found.max_logp, Tensor | None)
    pairs = torch.zeros_like(targets)
    scores = pair_scores(hidden, weight, targets, pairs, 1, {"logp": torch.ones(3)})
    assert_type(scores.scores, Tensor)
    return found.entropi  # error


def train(rows: str) -> None:
    args = PreferenceConfig(output_dir="out", beta=0.1, method="tdpo2")
    assert_type(args.beta, float)
    trainer = PreferenceTrainer("model", args=args, train_dataset=rows)
    try:
        trainer.train()
    except PrefkitError as error:
        assert_type(error, PrefkitError)
    PreferenceTrainer("model", args="out")  # error
