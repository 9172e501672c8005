"""KTO in the trainer: unpaired rows, the reference point, and TRL's own trainer beside it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback

from prefkit.cli.main import main
from prefkit.data.dataset import prepare_pairs
from prefkit.data.formats.detect import ReadOptions
from prefkit.data.mismatched import with_mismatched
from prefkit.data.pair import TokenizedPair, TokenizedSide
from prefkit.errors import ConfigError, RowError
from tests.train.trainer_cases import byte_tokenizer, logs_of, save_model, tiny_model, trainer

ROWS = [
    {"prompt": "2+2=", "completion": " 4", "label": True},
    {"prompt": "3+1=", "completion": " 5, surely", "label": False},
    {"prompt": "1+1=", "completion": " 2, as always", "label": True},
    {"prompt": "4+4=", "completion": " 9", "label": False},
]
PAIRS = [
    {"prompt": f"{a}+{b}=", "chosen": f" {a + b}", "rejected": f" {a + b + 1}, surely"}
    for a in range(3)
    for b in range(2)
]


class FirstGradient(TrainerCallback):
    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not hasattr(self, "grads"):
            model = kwargs["model"]
            self.grads = {name: p.grad.detach().clone() for name, p in model.named_parameters()}


def ours(folder: Path, rows: list[dict] = ROWS, **changes: Any) -> tuple[dict, dict]:
    """The first log line and the first gradient of a step on all rows."""
    keep = FirstGradient()
    options = {"method": "kto", "max_steps": 1, "beta": 0.3, "max_grad_norm": 0.0, **changes}
    trained = trainer(
        folder,
        tiny_model(seed=1, scale=3.0),
        rows,
        ref_model=tiny_model(scale=3.0),
        callbacks=[keep],
        **options,
    )
    trained.train()
    return logs_of(trained)[0], keep.grads


def same_gradients(found: dict, expected: dict, rtol: float = 1e-4) -> None:
    scale = max(float(grad.abs().max()) for grad in expected.values())
    assert scale > 0
    for name, grad in expected.items():
        assert (found[name] - grad).abs().max() <= rtol * scale, name


@pytest.mark.parametrize("kind", ["kto", "apo_zero_unpaired"])
def test_a_step_has_the_loss_and_gradients_of_trl(kind: str, tmp_path: Path) -> None:
    """One batch of all rows, so that both shift the responses by one over the same rows."""
    trl = pytest.importorskip("trl", reason="TRL is not installed")
    keep = FirstGradient()
    args = trl.KTOConfig(
        output_dir=str(tmp_path / "trl"),
        loss_type=kind,
        beta=0.3,
        desirable_weight=1.3,
        per_device_train_batch_size=len(ROWS),
        max_steps=1,
        logging_steps=1,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        max_grad_norm=0.0,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    theirs = trl.KTOTrainer(
        model=tiny_model(seed=1, scale=3.0),
        ref_model=tiny_model(scale=3.0),
        args=args,
        train_dataset=Dataset.from_list(ROWS),
        processing_class=byte_tokenizer(),
        callbacks=[keep],
    )
    theirs.train()
    expected = theirs.state.log_history[0]
    point = kind == "kto"
    logs, grads = ours(tmp_path, desirable_weight=1.3, reference_point=point)
    names = ["loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen"]
    for name in [*names, *(["kl"] if point else [])]:
        assert logs[name] == pytest.approx(expected[name], rel=1e-5), name
    assert not point or expected["kl"] > 0
    same_gradients(grads, keep.grads)


@pytest.mark.parametrize("rows", [ROWS, PAIRS], ids=["unpaired", "pairs"])
@pytest.mark.parametrize("layout", ["tree", "shared", "separate"])
def test_layouts_agree(layout: str, rows: list[dict], tmp_path: Path) -> None:
    size = {"per_device_train_batch_size": len(rows)}
    plain, grads = ours(tmp_path, rows, layout="separate", **size)
    logs, found = ours(tmp_path, rows, layout=layout, **size)
    assert logs["loss"] == pytest.approx(plain["loss"], rel=1e-5)
    assert logs["kl"] == pytest.approx(plain["kl"], rel=1e-5)
    same_gradients(found, grads, 1e-5)


def test_a_window_is_divided_by_its_responses(tmp_path: Path) -> None:
    """Without z0, which is a batch's own: one batch, or four of unlike kinds of responses."""
    rows = [*ROWS[:3], {"prompt": "5+1=", "chosen": " 6", "rejected": " 7"}]
    logs, grads = ours(tmp_path, rows, reference_point=False)
    small = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    found, small_grads = ours(tmp_path, rows, reference_point=False, **small)
    same_gradients(small_grads, grads, 1e-5)
    for name in ("rewards/chosen", "rewards/rejected", "logps/chosen", "rewards/accuracies"):
        assert found[name] == pytest.approx(logs[name], rel=1e-5), name


def test_a_log_line_leaves_out_what_no_row_has(tmp_path: Path) -> None:
    desirable = [row for row in ROWS if row["label"]]
    logs, _ = ours(tmp_path, desirable)
    assert "rewards/chosen" in logs
    assert not {"rewards/rejected", "rewards/margins", "rewards/accuracies"} & logs.keys()


def test_the_model_learns_from_unpaired_rows(tmp_path: Path) -> None:
    trained = trainer(
        tmp_path, rows=ROWS, method="kto", max_steps=12, learning_rate=2e-2, eval_dataset=ROWS
    )
    before = trained.evaluate()
    trained.train()
    after = trained.evaluate()
    assert after["eval_loss"] < before["eval_loss"] - 0.02
    assert after["eval_rewards/chosen"] > 0.05
    assert after["eval_rewards/rejected"] < -0.05


def test_mismatched_responses_are_those_of_the_pair_before() -> None:
    dataset = prepare_pairs(ROWS, byte_tokenizer(), reading=ReadOptions(unpaired=True))
    found = with_mismatched(dataset.pairs, None, "train")
    tokenizer = byte_tokenizer()
    texts = [tokenizer.decode(pair.mismatched[0].ids) for pair in found]
    assert texts[0] == "2+2= 9<eos>"
    assert texts[1] == "3+1= 4<eos>"
    assert [len(pair.mismatched) for pair in found] == [1] * 4
    both = prepare_pairs(PAIRS, tokenizer)
    texts = [
        [tokenizer.decode(s.ids) for s in p.mismatched]
        for p in with_mismatched(both.pairs, 9, "train")
    ]
    assert texts[1] == ["0+1= 0<eos>", "0+1= 1, s"]


def test_the_nearest_pair_of_another_prompt_is_found_in_sorted_rows() -> None:
    """Against a search for each row by itself, where rows of few prompts follow each other."""

    def pair(row: int, question: int | None) -> TokenizedPair:
        ids, scored = np.array([question or 0, 100 + row]), np.array([False, True])
        side = TokenizedSide(ids=ids, scored=scored, weights=np.ones(2), eos=True)
        of_row = {"source": "", "row": row, "question": question}
        return TokenizedPair(chosen=side, rejected=side, shared=1, **of_row)

    for asked in ([0, 0, 1, 1, 1, 0, 2, 2], [0, 1], [3, 3, 4], [4, 3, 3], [None] * 3, [0, 0, None]):
        pairs = [pair(row, question) for row, question in enumerate(asked)]
        found = [int(one.mismatched[0].ids[1]) - 100 for one in with_mismatched(pairs)]
        for row, other in enumerate(found):
            ways = [(row - back) % len(pairs) for back in range(1, len(pairs))]
            own = asked[row]
            assert other == next(k for k in ways if own is None or asked[k] != own), asked
    for asked in ([5, 5], [None], [1]):
        with pytest.raises(ConfigError, match="same prompt"):
            with_mismatched([pair(row, question) for row, question in enumerate(asked)])


def test_an_absent_response_is_its_prompt_alone() -> None:
    good, bad, *_ = prepare_pairs(ROWS, byte_tokenizer(), reading=ReadOptions(unpaired=True)).pairs
    assert good.chosen.scored.sum() == 3
    assert not good.rejected.scored.any()
    assert torch.equal(torch.tensor(good.rejected.ids), torch.tensor(good.chosen.ids[:4]))
    assert not bad.chosen.scored.any()
    assert bad.rejected.scored.any()


WRONG: dict[str, tuple[dict, type, list[str]]] = {
    "one prompt": ({"rows": ROWS[:1] * 2}, ConfigError, ["same prompt", "reference_point"]),
    "a stream": (
        {"rows": Dataset.from_list(ROWS).to_iterable_dataset()},
        ConfigError,
        ["stream", "reference_point"],
    ),
    "a label": (
        {"rows": [{**ROWS[0], "label": "yes"}]},
        RowError,
        ["row 0", "'label'", "true"],
    ),
    "a cache": ({"precompute_ref_log_probs": True}, ConfigError, ["mismatched"]),
    "another method": ({"method": "dpo"}, RowError, ["unpaired", "kto"]),
    "its weights": ({"method": "dpo", "desirable_weight": 2.0}, ConfigError, ["kto"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_kto_cannot_do_is_refused_by_name(name: str, tmp_path: Path) -> None:
    changes, kind, words = WRONG[name]
    with pytest.raises(kind) as caught:
        trainer(tmp_path, **{"rows": ROWS, "method": "kto", **changes})
    for word in words:
        assert word in str(caught.value)


def test_an_adapter_switched_off_is_the_reference(tmp_path: Path) -> None:
    """Nothing has moved at the first step: every S and z0 are 0, the losses half the weights."""
    adapter = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
    options = {"method": "kto", "peft_config": adapter, "desirable_weight": 1.4, "max_steps": 2}
    trained = trainer(tmp_path, rows=ROWS, **options)
    trained.train()
    first, second = logs_of(trained)
    assert first["loss"] == pytest.approx(0.5 * (1.4 + 1.0) / 2)
    assert first["kl"] == 0
    assert second["loss"] != pytest.approx(first["loss"], rel=1e-4)


def test_inspect_shows_unpaired_rows(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS[:2]))
    model = save_model(tmp_path / "model")
    assert main(["inspect", str(rows), "--model", model, "--method", "kto"]) == 0
    told = capsys.readouterr().out
    assert "no rejected response" in told
    assert "no chosen response" in told
