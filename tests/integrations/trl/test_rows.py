"""Prefixes, ends of steps and token weights: what of the rows reaches the loss."""

from pathlib import Path
from typing import Any

import pytest
import torch

from prefkit.errors import ConfigError, RowError
from tests.integrations.trl.cases import (
    check_step,
    datasets,
    moved,
    one_step,
    our_config,
    ours,
    theirs,
    trainer,
)
from tests.train.trainer_cases import byte_tokenizer

EOS = 256
STEPS = [
    {"prompt": f"{a}+{a}=", "prefix": " so ", "chosen": f"{2 * a}.", "rejected": f"{a}, no."}
    for a in range(4)
]


def ids_of(made: Any, row: int = 0) -> dict[str, list[int]]:
    found = made.train_dataset[row]
    return {name: found[f"{name}_ids"] for name in ("prompt", "chosen", "rejected")}


def test_a_step_has_no_end_and_its_prefix_is_context(tmp_path: Path) -> None:
    ids = ids_of(trainer(ours(), tmp_path, rows=STEPS))
    expected = {"prompt": "0+0= so ", "chosen": "0.", "rejected": "0, no."}
    vocabulary = byte_tokenizer().get_vocab()
    for name, value in expected.items():
        assert ids[name] == [vocabulary[c] for c in value.replace(" ", "Ġ")]
    assert ids_of(trainer(theirs(), tmp_path, rows=STEPS))["chosen"][-1] == EOS


def test_a_prompt_that_holds_the_prefix_gets_it_once(tmp_path: Path) -> None:
    rows = [{**row, "prompt": row["prompt"] + row["prefix"]} for row in STEPS]
    got, want = (ids_of(trainer(ours(), tmp_path, rows=given)) for given in (rows, STEPS))
    assert got == want


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prefx": "So"}, "field 'prefx': is no field that is read, but nearly 'prefix'"),
        ({"chosen_weight": [1.0]}, "'chosen_weight': .*nearly 'chosen_weights'"),
        ({"prefix": 3}, "row 0, field 'prefix': is a int, not text"),
        ({"chosen": None}, "row 0, field 'chosen': is null"),
        ({"chosen_weights": [0.0] * 2, "rejected_weights": [0.0] * 6}, "row 0.*are all 0"),
    ],
)
def test_what_a_row_may_not_hold_is_named(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    row = {**STEPS[0], **changes}
    if "prefx" in row:
        del row["prefix"]
    with pytest.raises(RowError, match=words):
        trainer(ours(), tmp_path, rows=[row])


def test_step_dpos_column_is_a_prefix(tmp_path: Path) -> None:
    rows = [{**row, "initial_reason_steps": row["prefix"]} for row in STEPS]
    for row in rows:
        del row["prefix"]
    got, want = (ids_of(trainer(ours(), tmp_path, rows=given)) for given in (rows, STEPS))
    assert got == want


@pytest.mark.parametrize(
    ("option", "row", "ends"),
    [
        ("auto", {}, False),
        ("always", {}, True),
        ("never", {"prefix": ""}, False),
        ("auto", {"prefix": ""}, False),  # the first step of a solution
        ("auto", {"prefix": None}, True),
        ("auto", {"append_eos": True}, True),
        ("always", {"append_eos": False}, False),
        ("auto", {"chosen": "0.<eos>", "rejected": "1<eos>"}, True),
    ],
)
def test_which_completions_end(option: str, row: Any, ends: bool, tmp_path: Path) -> None:
    made = trainer(
        ours(), tmp_path, rows=[{**STEPS[0], **row}], config=our_config(), append_eos=option
    )
    ids = ids_of(made)
    assert [ids[side][-1] == EOS for side in ("chosen", "rejected")] == [ends, ends]
    assert all(ids[side].count(EOS) == ends for side in ("chosen", "rejected"))


def test_rows_without_prefix_are_trls(tmp_path: Path) -> None:
    rows = [{k: v for k, v in row.items() if k != "prefix"} for row in STEPS]
    got, want = (trainer(kind, tmp_path, rows=rows).train_dataset for kind in (ours(), theirs()))
    assert got.column_names == want.column_names
    assert got.to_list() == want.to_list()


def test_a_prefix_beside_messages_is_refused(tmp_path: Path) -> None:
    rows = [
        {
            "prompt": [{"role": "user", "content": "1+1?"}],
            "prefix": "So",
            "chosen": [{"role": "assistant", "content": "2"}],
            "rejected": [{"role": "assistant", "content": "3"}],
        }
    ]
    with pytest.raises(ConfigError, match="a prefix beside messages"):
        trainer(ours(), tmp_path, rows=rows)


def test_an_empty_step_is_refused_by_row(tmp_path: Path) -> None:
    rows = [*STEPS[:1], {**STEPS[1], "rejected": ""}]
    with pytest.raises(RowError, match="train: row 1, field 'rejected': has no token"):
        trainer(ours(), tmp_path, rows=rows)


# -- weights ---------------------------------------------------------------------------------------

PAIR = {"prompt": "1+1=", "chosen": "2!", "rejected": "35"}


def weighted_step(folder: Path, weights: Any, layout: str, **options: Any) -> Any:
    rows = [{**PAIR, "chosen_weights": weights[0], "rejected_weights": weights[1]}]
    given = {"config": our_config(), "prefkit_layout": layout, **options}
    made = trainer(ours(), folder, rows=rows, **given)
    batch = dict(next(iter(made.get_train_dataloader())))
    return one_step(made, batch), batch


@pytest.mark.parametrize("layout", ["shared", "padded"])
def test_weights_reach_the_loss(layout: str, tmp_path: Path) -> None:
    """Of one and two on all tokens: β and 2β. Of 0: as if the token were not there."""
    ones, _ = weighted_step(tmp_path, ([1.0] * 3, [1.0] * 3), layout)
    plain = one_step(trainer(theirs(), tmp_path, rows=[PAIR]))
    check_step(ones, plain)
    twos, _ = weighted_step(tmp_path, ([2.0] * 3, [2.0] * 3), layout, beta=0.1)
    doubled = one_step(trainer(theirs(), tmp_path, rows=[PAIR], beta=0.2))
    assert twos[0] == pytest.approx(doubled[0], rel=1e-5)
    masked, batch = weighted_step(tmp_path, ([1.0, 0.0, 1.0], [0.0, 1.0, 1.0]), layout)
    batch["completion_mask"] = batch["completion_mask"] * (batch["token_weights"] != 0)
    for name in ("token_weights", "prefkit_row"):
        batch.pop(name, None)
    fresh = trainer(theirs(), tmp_path, rows=[PAIR])
    check_step(masked, one_step(fresh, batch))


def test_an_end_that_no_weight_speaks_of_has_one(tmp_path: Path) -> None:
    short, _ = weighted_step(tmp_path, ([0.5, 2.0], [1.0, 3.0]), "padded")
    full, batch = weighted_step(tmp_path, ([0.5, 2.0, 1.0], [1.0, 3.0, 1.0]), "padded")
    check_step(short, full)
    assert batch["token_weights"].tolist()[0] == [0.0] * 4 + [0.5, 2.0, 1.0]


def test_weights_are_in_the_precomputed_reference(tmp_path: Path) -> None:
    weights = ([0.5, 2.0, 1.0], [1.0, 3.0, 0.0])
    live, _ = weighted_step(tmp_path, weights, "shared")
    kept, _ = weighted_step(tmp_path, weights, "shared", precompute_ref_log_probs=True)
    check_step(kept, live)


@pytest.mark.parametrize("mode", ["keep_start", "keep_end"])
def test_weights_are_cut_with_their_tokens(mode: str, tmp_path: Path) -> None:
    options = {"max_length": 6, "truncation_mode": mode}
    (loss, _, _), batch = weighted_step(tmp_path, ([1.0, 2.0, 3.0],) * 2, "padded", **options)
    kept = [0.0] * 4 + [1.0, 2.0] if mode == "keep_start" else [0.0] * 3 + [1.0, 2.0, 3.0]
    assert batch["token_weights"].tolist() == [kept, kept]
    shared, _ = weighted_step(tmp_path, ([1.0, 2.0, 3.0],) * 2, "shared", **options)
    assert shared[0] == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0], "has 1 weights for a completion of 3 tokens"),
        ([1.0, -1.0, 1.0], "is -1.0"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    weights: list[float], message: str, tmp_path: Path
) -> None:
    rows = [{**PAIR, "chosen_weights": weights, "rejected_weights": [1.0] * 3}]
    with pytest.raises(RowError, match=f"train: row 0, field 'chosen_weights.*{message}"):
        trainer(ours(), tmp_path, rows=rows)


def test_weights_for_other_tokens_are_refused(tmp_path: Path) -> None:
    given = {"ids": [1, 2, 3], "weights": [1.0] * 3}
    rows = [{**PAIR, "chosen_weights": given, "rejected_weights": given}]
    with pytest.raises(RowError, match="was made for the tokens"):
        trainer(ours(), tmp_path, rows=rows)


def test_a_collator_that_loses_the_weights_is_refused(tmp_path: Path) -> None:
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    class Own(DataCollatorForPreference):
        pass

    rows = [{**PAIR, "chosen_weights": [1.0] * 3, "rejected_weights": [1.0] * 3}]
    made = trainer(ours(), tmp_path, rows=rows, data_collator=Own(0))
    with pytest.raises(ConfigError, match="the data_collator leaves them out"):
        one_step(made)


def test_streams_have_weights_and_prefixes_too(tmp_path: Path) -> None:
    rows = [{**row, "chosen_weights": [1.0, 0.5], "rejected_weights": None} for row in STEPS]
    stream = datasets.Dataset.from_list(rows).to_iterable_dataset()
    made = trainer(ours(), tmp_path, rows=stream, max_steps=2)
    made.train()
    first = next(iter(made.train_dataset))
    assert first["rejected_weights"] == [1.0] * len(first["rejected_ids"])
    assert EOS not in first["chosen_ids"]


# -- the KL of TDPO --------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["shared", "padded"])
@pytest.mark.parametrize("method", ["tdpo1", "tdpo2"])
def test_tdpo_is_prefkits(method: str, layout: str, tmp_path: Path) -> None:
    """Against the definition (arXiv 2404.11999), on whole logits in fp64."""
    alpha = {} if method == "tdpo1" else {"prefkit_alpha": 0.7}
    options = {"config": our_config(), "prefkit_method": method, **alpha}
    made = trainer(
        ours(), tmp_path, ref_model=moved(by=0.2), beta=0.3, prefkit_layout=layout, **options
    )
    batch = dict(next(iter(made.get_train_dataloader())))
    loss, grads, metrics = one_step(made, batch)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    policy, reference = made.model.double(), made.ref_model.double()
    policy.zero_grad()
    targets, mask = batch["input_ids"][:, 1:, None], batch["completion_mask"][:, 1:]
    logp, ref = (m(**inputs).logits[:, :-1].log_softmax(-1) for m in (policy, reference))
    ratio = ((logp - ref.detach()).gather(2, targets)[..., 0] * mask).sum(1)
    kl = ((ref.exp() * (ref - logp)).sum(-1) * mask).sum(1)
    (r_w, r_l), (k_w, k_l) = ratio.chunk(2), kl.chunk(2)
    factor = 0.3 if method == "tdpo1" else 0.7 * 0.3
    k_first = k_w if method == "tdpo1" else k_w.detach()
    u = 0.3 * (r_w - r_l) - factor * (k_l - k_first)
    expected = -torch.nn.functional.logsigmoid(u).mean()
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    assert metrics["kl/chosen"] == pytest.approx(float(k_w.detach().mean()), rel=1e-4)
    grads = {name: grad.clone() for name, grad in grads.items()}
    policy.zero_grad()
    expected.backward()
    scale = max(float(p.grad.abs().max()) for p in policy.parameters())
    for name, parameter in policy.named_parameters():
        assert float((grads[name] - parameter.grad).abs().max()) <= 1e-4 * scale, name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_type": ["ipo"]}, "which has no loss_type"),
        ({"ld_alpha": 0.5}, "which has no ld_alpha"),
        ({"label_smoothing": 0.2}, "which has no label_smoothing"),
        ({"precompute_ref_log_probs": True}, "precompute_ref_log_probs cannot be had"),
        ({"prefkit_method": "tdpo3"}, "^prefkit_method is 'tdpo3'; it is one of dpo, tdpo1, tdpo2"),
        (
            {"prefkit_method": "dpo", "prefkit_alpha": 9.0},
            "^prefkit_alpha is 9.0, and prefkit_meth",
        ),
        ({"prefkit_method": "tdpo1", "prefkit_alpha": 0.5}, "only tdpo2 reads it"),
        ({"prefkit_alpha": -1.0}, "^prefkit_alpha is -1.0; it is at least 0"),
        ({"prefkit_layout": "wide"}, "^prefkit_layout is 'wide'"),
        ({"append_eos": "no"}, "^append_eos is 'no'"),
        ({"prefkit_memory_budget": 0}, "^prefkit_memory_budget is 0"),
    ],
)
def test_what_tdpo_excludes(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    given = {"prefkit_method": "tdpo2", **options}
    with pytest.raises(ConfigError, match=message):
        trainer(ours(), tmp_path, config=our_config(), **given)
