"""`patch()`: whoever has TRL's class, from before or since, has prefkit's head, until `unpatch`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prefkit.errors import ConfigError
from tests.integrations.trl.cases import check_step, one_step, theirs, trainer, trl

Imported = theirs()  # `from trl import DPOTrainer`, before any patch


class MadeBefore(Imported):  # type: ignore[misc, valid-type]
    """As axolotl and LLaMA-Factory make theirs."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.was_made = True

    def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
        return super()._compute_loss(model, inputs, return_outputs)


@pytest.fixture
def patched() -> Iterator[Any]:
    from prefkit.integrations.trl import patch, unpatch

    patch()
    yield patch
    unpatch()


@pytest.mark.usefixtures("patched")
@pytest.mark.parametrize("kind", [Imported, MadeBefore])
def test_classes_from_before_have_it(kind: type, tmp_path: Path) -> None:
    from trl.trainer.dpo_trainer import DPOTrainer

    assert trl.DPOTrainer is DPOTrainer is Imported
    made = trainer(kind, tmp_path)
    assert made.prefkit_fallback is None
    assert "prefkit_row" in next(iter(made.get_train_dataloader()))
    got = one_step(made)
    from prefkit.integrations.trl import unpatch

    unpatch()
    check_step(got, one_step(trainer(kind, tmp_path)))


def test_unpatched_all_is_as_it_was(tmp_path: Path) -> None:
    from prefkit.integrations.trl import patch, unpatch

    before = dict(vars(Imported))
    patch()
    patch()  # as often as one likes
    assert vars(Imported) != before
    unpatch()
    unpatch()
    assert dict(vars(Imported)) == before
    made = trainer(Imported, tmp_path)
    assert not hasattr(made, "prefkit_fallback")
    assert "prefkit_row" not in next(iter(made.get_train_dataloader()))


@pytest.mark.usefixtures("patched")
def test_the_subclass_under_the_patch_does_everything_once(tmp_path: Path) -> None:
    from prefkit.integrations.trl import DPOTrainer

    rows = [{"prompt": "1+1=", "prefix": " so", "chosen": " 2", "rejected": " 3"}]
    made = trainer(DPOTrainer, tmp_path, rows=rows)
    assert len(made.train_dataset[0]["chosen_ids"]) == 2
    assert len(made.train_dataset[0]["prompt_ids"]) == 7
    check_step(one_step(made), one_step(trainer(Imported, tmp_path, rows=rows)))


def test_settings_of_a_patch(patched: Any, tmp_path: Path) -> None:
    """For configs that are TRL's own, which cannot say them."""
    patched(method="tdpo2", layout="padded")
    made = trainer(Imported, tmp_path)
    assert "prefkit_row" not in next(iter(made.get_train_dataloader()))
    assert "kl/chosen" in one_step(made)[2]
    with pytest.raises(ConfigError, match="layout is 'wide'; it is one of auto, shared, padded"):
        patched(layout="wide")


WEIGHTED = [
    {
        "prompt": f"{a}+{a}=",
        "chosen": "2!",
        "rejected": "35",
        "chosen_weights": [2.0] * 3,
        "rejected_weights": [2.0] * 3,
    }
    for a in range(4)
]


def test_a_trainer_does_not_outlive_its_patch(patched: Any, tmp_path: Path) -> None:
    """TRL would compute its loss without the weights; another patch lets it go on."""
    from prefkit.integrations.trl import DPOTrainer, unpatch

    made, own = (trainer(kind, tmp_path, rows=WEIGHTED) for kind in (Imported, DPOTrainer))
    want = one_step(made)[0]
    unpatch()
    with pytest.raises(ConfigError, match="made under prefkit's patch, which unpatch"):
        made.train()
    assert one_step(own)[0] == pytest.approx(want, rel=1e-6)
    patched()
    assert one_step(made)[0] == pytest.approx(want, rel=1e-6)


def test_trainers_from_before_keep_trls_loss(tmp_path: Path) -> None:
    from prefkit.integrations.trl import patch, unpatch

    made, other = trainer(Imported, tmp_path, max_steps=2), trainer(Imported, tmp_path)
    patch()
    try:
        assert made.prefkit_fallback == "the trainer was made before patch() was called"
        assert "prefkit" not in made.model.config._attn_implementation
        assert "_prefkit_head" not in vars(made.model)
        got = one_step(made)
    finally:
        unpatch()
    check_step(got, one_step(other))
    made.train()


def test_settings_stay_until_others_are_given(patched: Any, tmp_path: Path) -> None:
    patched(method="tdpo2")
    patched()
    assert "kl/chosen" in one_step(trainer(Imported, tmp_path))[2]
    patched(method="dpo")
    assert "kl/chosen" not in one_step(trainer(Imported, tmp_path))[2]
    with pytest.raises(ConfigError, match=r"^alpha is 0\.5, and method is 'dpo'"):
        patched(alpha=0.5)
