"""What is prepared for `evaluate`, and what neither TRL nor prefkit may drop without a word."""

import inspect
import warnings
from pathlib import Path
from typing import Any

import pytest

from prefkit.errors import ConfigError
from tests.integrations.trl.cases import datasets, one_step, ours, theirs, trainer
from tests.integrations.trl.test_fallback import shifted
from tests.integrations.trl.test_rows import PAIR, STEPS
from tests.train.trainer_cases import ROWS

WEIGHTED = [{**PAIR, "chosen_weights": [2.0] * 3, "rejected_weights": [0.5] * 3}] * 4


def dataset(rows: Any) -> Any:
    return datasets.Dataset.from_list(list(rows))


def weighing(factor: float = 0.25, leaves_out: bool = False) -> Any:
    """A collator of one's own, which may put weights into its batches."""
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    class Own(DataCollatorForPreference):
        def torch_call(self, examples: Any) -> Any:
            batch = super().torch_call(examples)
            if not leaves_out:
                batch["token_weights"] = batch["completion_mask"].float() * factor
            return batch

    return Own(0)


def test_prepared_steps_are_evaluated_as_they_are(tmp_path: Path) -> None:
    made = trainer(ours(), tmp_path, rows=STEPS, eval_dataset=STEPS)
    first, again = made.evaluate(), made.evaluate(made.eval_dataset)
    for name in ("eval_loss", "eval_logps/chosen"):
        assert again[name] == pytest.approx(first[name], rel=1e-6)
    assert made.train_dataset["chosen"][0] == STEPS[0]["chosen"]


def test_weighted_rows_are_evaluated_and_training_goes_on(tmp_path: Path) -> None:
    made, plain = trainer(ours(), tmp_path, max_steps=2), trainer(ours(), tmp_path, max_steps=2)
    weighted = trainer(ours(), tmp_path, rows=WEIGHTED)
    got = made.evaluate(dataset(WEIGHTED))["eval_loss"]
    assert got == pytest.approx(weighted.evaluate(dataset(WEIGHTED))["eval_loss"], rel=1e-6)
    assert got != pytest.approx(plain.evaluate(dataset([PAIR] * 4))["eval_loss"], rel=1e-3)
    for run in (made, plain):
        run.train()
    losses = [run.state.log_history[-1]["train_loss"] for run in (made, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize(
    ("make", "own", "message"),
    [
        (shifted, {}, "token weights, which TRL cannot read"),
        (lambda: None, {"data_collator": weighing(leaves_out=True)}, "leaves them out"),
    ],
    ids=["of a model that TRL computes", "with a collator that loses them"],
)
def test_weighted_rows_that_are_refused_leave_training_alone(
    make: Any, own: Any, message: str, tmp_path: Path
) -> None:
    made = trainer(ours(), tmp_path, make(), max_steps=1, **own)
    with pytest.raises(ConfigError, match=message):
        made.evaluate(dataset(WEIGHTED))
    made.train()


def test_weights_of_a_collator_are_not_those_of_another_run(tmp_path: Path) -> None:
    """TRL keeps precomputed sums by rows and model, and would find those of other weights."""
    dataset(ROWS).save_to_disk(tmp_path / "rows")
    losses = []
    for precompute in (True, False):
        for own in ({}, {"data_collator": weighing()}, {"data_collator": weighing(2.0)}):
            rows = datasets.load_from_disk(tmp_path / "rows")
            options = {"precompute_ref_log_probs": precompute, **own}
            losses.append(one_step(trainer(ours(), tmp_path, rows=rows, **options))[0])
    assert losses[:3] == pytest.approx(losses[3:], rel=1e-4)
    assert len({round(loss, 3) for loss in losses[:3]}) == 3


@pytest.mark.parametrize("given", [{"rows": []}, {"eval_dataset": []}])
def test_a_dataset_that_is_left_without_rows(given: Any, tmp_path: Path) -> None:
    gone = [{"prompt": "x" * 50, "chosen": "a", "rejected": "b"}]
    name = "train" if "rows" in given else "eval"
    given = {**given, next(iter(given)): gone}
    with pytest.raises(ConfigError, match=f"No row of the {name} dataset is left: .* max_length"):
        trainer(ours(), tmp_path, max_length=20, **given)
    made = trainer(ours(), tmp_path)
    with pytest.raises(ConfigError, match="The eval dataset has no rows"):
        made.evaluate(dataset(gone).select([]))


def test_rows_may_be_prepared_by_several_processes(tmp_path: Path) -> None:
    rows = [{**row, "chosen_weights": [1.0, 0.5], "rejected_weights": None} for row in STEPS]
    one, two = (trainer(ours(), tmp_path, rows=rows, dataset_num_proc=n) for n in (None, 2))
    assert two.train_dataset.to_list() == one.train_dataset.to_list()


# -- classes with a loss of their own --------------------------------------------------------------


class Own(theirs()):  # type: ignore[misc]
    """A loss that has nothing of TRL's."""

    def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
        self.keys = set(inputs)
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        return model(input_ids=ids, attention_mask=mask, labels=ids).loss


class Public(theirs()):  # type: ignore[misc]
    """The same in Trainer's own method."""

    def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Any:
        self.keys = set(inputs)
        return model(input_ids=inputs["input_ids"], labels=inputs["input_ids"]).loss


class Halved(ours()):  # type: ignore[misc]
    """A loss made of the one that it replaces, which is prefkit's."""

    def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
        return super()._compute_loss(model, inputs, return_outputs) / 2


class ByHelper(ours()):  # type: ignore[misc]
    """The same in a method beside it."""

    def _compute_loss(self, *args: Any) -> Any:
        return self._half(*args)

    def _half(self, *args: Any) -> Any:
        return super()._compute_loss(*args) / 2


class Nested(ours()):  # type: ignore[misc]
    """The same in a function within it."""

    def _compute_loss(self, *args: Any) -> Any:
        def half() -> Any:
            return super(Nested, self)._compute_loss(*args) / 2

        return half()


@pytest.mark.parametrize("kind", [Own, Public])
def test_a_loss_of_ones_own_is_left_alone(kind: type, tmp_path: Path) -> None:
    from prefkit.integrations.trl import patch, unpatch

    patch()
    try:
        made = trainer(kind, tmp_path)
        assert f"({kind.__name__}) does not name the one that it replaces" in made.prefkit_fallback
        loss = made.compute_loss(made.model, dict(next(iter(made.get_train_dataloader()))))
        assert loss > 0
        assert made.keys == {"input_ids", "attention_mask", "completion_mask"}
        with pytest.raises(ConfigError, match="token weights, which TRL cannot read"):
            trainer(kind, tmp_path, rows=WEIGHTED)
    finally:
        unpatch()


@pytest.mark.parametrize("kind", [Halved, ByHelper, Nested])
def test_a_loss_that_is_made_of_prefkits(kind: type, tmp_path: Path) -> None:
    made, whole = (trainer(one, tmp_path, rows=WEIGHTED) for one in (kind, ours()))
    assert made.prefkit_fallback is None
    assert one_step(made)[0] == pytest.approx(one_step(whole)[0] / 2, rel=1e-6)


# -- what whoever looks at it sees -----------------------------------------------------------------


def test_the_signature_is_trls() -> None:
    assert inspect.signature(ours()) == inspect.signature(theirs())


def test_logits_are_deprecated_where_trl_deprecates_them(tmp_path: Path) -> None:
    warned = []
    for kind in (ours(), theirs()):
        own = {"eval_dataset": ROWS[:4], "compute_metrics": lambda _: {}}
        made = trainer(kind, tmp_path, **own)
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            made.evaluate()
        warned.append(any("compute_metrics" in str(one.message) for one in found))
    assert warned[0] == warned[1]


def test_the_loss_of_nothing_is_made_once_an_objective(tmp_path: Path) -> None:
    from prefkit.integrations.trl.loss import _of_nothing

    made = trainer(ours(), tmp_path)
    _of_nothing.cache_clear()
    for beta in (0.1, 0.1, 0.3):
        made.beta = beta
        one_step(made)
    assert _of_nothing.cache_info().misses == 2
