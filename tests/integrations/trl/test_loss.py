"""Loss, gradients and metrics of one batch are TRL's: each loss, head and kind of batch."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.integrations.trl.cases import (
    check_step,
    moved,
    one_step,
    our_config,
    ours,
    theirs,
    trainer,
)
from tests.train.trainer_cases import tiny_model

LOSSES = (
    *("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard"),
    *("aot", "aot_unpaired", "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm"),
)
SMOOTHED = {"exo_pair": 1e-3, "robust": 0.1, "aot": 0.1, "aot_unpaired": 0.1}
OTHERS: dict[str, dict[str, Any]] = {
    "several": {"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]},
    "forward_kl": {"f_divergence_type": "forward_kl"},
    "js_divergence": {"f_divergence_type": "js_divergence", "loss_type": ["ipo"]},
    "alpha_divergence": {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.7},
    "ld": {"ld_alpha": 0.4},
    "wpo": {"use_weighting": True},
    "unread smoothing": {"label_smoothing": 0.2},
}


def both(
    folder: Path, family: str = "llama", layout: str = "auto", **options: Any
) -> tuple[Any, Any]:
    """A step of ours and of theirs, on models of the same weights."""
    made = []
    for kind, config in (
        (ours(), {"config": our_config(), "prefkit_layout": layout}),
        (theirs(), {}),
    ):
        model = tiny_model(family, scale=3.0)
        made.append(trainer(kind, folder, model, ref_model=moved(family), **config, **options))
    assert made[0].prefkit_fallback is None
    return one_step(made[0]), one_step(made[1])


@pytest.mark.parametrize("layout", ["shared", "padded"])
@pytest.mark.parametrize("loss_type", LOSSES)
def test_every_loss(loss_type: str, layout: str, tmp_path: Path) -> None:
    smoothing = SMOOTHED.get(loss_type, 0.0)
    options = {"loss_type": [loss_type], "label_smoothing": smoothing, "beta": 0.3}
    check_step(*both(tmp_path, layout=layout, **options))


@pytest.mark.parametrize("name", OTHERS)
def test_other_options(name: str, tmp_path: Path) -> None:
    from prefkit.integrations.trl.versions import drops_constants

    if name == "js_divergence" and drops_constants():
        pytest.skip("this version of TRL has another loss, and computes it")
    check_step(*both(tmp_path, **OTHERS[name]))


@pytest.mark.parametrize("layout", ["shared", "padded"])
@pytest.mark.parametrize("family", ["llama-tied", "gemma2", "cohere", "granite", "gpt2"])
def test_every_head(family: str, layout: str, tmp_path: Path) -> None:
    """Softcaps, scales and tied weights: also in the mean logits."""
    check_step(*both(tmp_path, family, layout))


@pytest.mark.parametrize("family", ["mixtral", "qwen3-moe"])
def test_the_routers_loss(family: str, tmp_path: Path) -> None:
    got, want = both(tmp_path, family, router_aux_loss_coef=0.1)
    assert want[2]["aux_loss"] > 0
    check_step(got, want)


@pytest.mark.parametrize("rows", [(0, 4), (4,), (1,)])
@pytest.mark.parametrize("options", [{}, {"ld_alpha": 0.4}])
def test_a_batch_whose_pairs_are_partly_masked(
    options: dict[str, Any], rows: tuple[int, ...], tmp_path: Path
) -> None:
    """A pair of which nothing is scored, or one side alone, counts as TRL counts it."""
    steps = []
    for kind in (ours(), theirs()):
        made = trainer(kind, tmp_path, **options)
        batch = dict(next(iter(made.get_train_dataloader())))
        batch.pop("prefkit_row", None)
        for row in rows:  # of four pairs: both sides of the first, or one of one
            batch["completion_mask"][row] = 0
        steps.append(one_step(made, batch))
    check_step(*steps)


def test_a_batch_that_is_wholly_masked(tmp_path: Path) -> None:
    losses = []
    for kind in (ours(), theirs()):
        made = trainer(kind, tmp_path)
        batch = dict(next(iter(made.get_train_dataloader())))
        batch.pop("prefkit_row", None)
        batch["completion_mask"].zero_()
        loss, grads, metrics = one_step(made, batch)
        assert all(not grad.any() for grad in grads.values())
        losses.append((loss, metrics))
    assert losses[0][0] == pytest.approx(losses[1][0])
    assert losses[0][1] == pytest.approx(losses[1][1])


def test_bf16_autocast_is_within_its_error(tmp_path: Path) -> None:
    """Of the loss in fp32; ours is no farther from it than theirs, or nearly as near."""
    exact = one_step(trainer(theirs(), tmp_path))[0]
    errors = []
    for kind in (ours(), theirs()):
        made = trainer(kind, tmp_path, bf16=True)
        with made.compute_loss_context_manager():
            errors.append(abs(one_step(made)[0] - exact))
    assert errors[0] <= max(2 * errors[1], 2**-7 * exact)


def test_precomputed_sums_of_the_reference_are_spread_exactly() -> None:
    from prefkit.integrations.trl.batch import Scored

    scored = Scored(
        pairs=2,
        shape=(4, 5),
        positions=torch.arange(6),
        targets=torch.zeros(6, dtype=torch.int64),
        segments=torch.tensor([0, 0, 0, 2, 3, 3]),  # pair 0 has no rejected side
        weights=torch.tensor([1.0, 0.5, 2.0, 1.0, 0.25, 0.25]),
    )
    chosen, rejected = torch.tensor([-7.0, -3.0]), torch.tensor([0.0, -5.0])
    for alpha in (None, 0.5):
        tails = scored.tails(alpha)
        spread = scored.spread(chosen, rejected, alpha)
        sums = scored.weighted(spread if tails is None else spread * tails)
        torch.testing.assert_close(sums, torch.cat([chosen, rejected]))
