"""prepare_pairs accounts for every row, keeps the order, and fingerprints what it made."""

import pickle
from typing import Any

import datasets
import numpy as np
import pytest
import torch

from prefkit.data import (
    PairCollator,
    PairDataset,
    ReadOptions,
    TokenizeOptions,
    prepare_pairs,
    read_pairs,
)
from prefkit.data.dataset import CHUNK
from tests.data.data_cases import (
    STANDARD_ROW,
    STEP_ROW,
    TDPO_FILE,
    character_tokenizer,
    scdpo_row,
)

TOKENIZER = character_tokenizer()


def _rows(count: int) -> list[dict[str, Any]]:
    return [
        {"prompt": f"{i} + 1 is", "chosen": f" {i + 1}.", "rejected": f" {i + 2}."}
        for i in range(count)
    ]


def test_order_and_content_do_not_depend_on_chunks() -> None:
    rows = _rows(2 * CHUNK + 3)
    dataset = prepare_pairs(rows, TOKENIZER)
    assert [p.row for p in dataset.pairs] == list(range(len(rows)))
    for place in (0, CHUNK - 1, CHUNK, 2 * CHUNK + 2):
        single = prepare_pairs([rows[place]], TOKENIZER).pairs[0]
        np.testing.assert_array_equal(single.chosen.ids, dataset.pairs[place].chosen.ids)
        np.testing.assert_array_equal(single.rejected.ids, dataset.pairs[place].rejected.ids)


def test_several_sources_follow_one_another() -> None:
    sources = [[STEP_ROW], datasets.Dataset.from_list(_rows(2)), [scdpo_row()]]
    dataset = prepare_pairs(sources, TOKENIZER, reading=ReadOptions(level="solution"))
    assert [p.row for p in dataset.pairs] == [0, 0, 1, 0]
    assert sum(dataset.report.sources.values()) == 4
    assert all(p.chosen.eos for p in dataset.pairs)


def test_pairs_made_in_memory_are_a_source() -> None:
    pairs = read_pairs(_rows(3))
    assert (
        prepare_pairs(pairs, TOKENIZER).fingerprint
        == prepare_pairs(_rows(3), TOKENIZER).fingerprint
    )


def test_report_counts_what_the_pairs_hold() -> None:
    rows = [STEP_ROW, {**STANDARD_ROW, "rejected": "\n"}, *_rows(2)]
    dataset = prepare_pairs(rows, TOKENIZER, reading=ReadOptions(on_bad_row="skip"))
    report = dataset.report
    sides = [s for p in dataset.pairs for s in (p.chosen, p.rejected)]
    assert report.pairs == len(dataset) == 3
    assert report.tokens == sum(len(s.ids) for s in sides)
    assert report.longest == max(len(s.ids) for s in sides)
    assert report.scored["chosen"] == sum(int(p.chosen.scored.sum()) for p in dataset.pairs)
    assert report.eos == 4
    assert report.skipped == {"empty": 1}
    assert report.incidents[0].row == 1
    assert "1 skipped: empty (1)" in report.summary()
    assert report.as_dict()["skipped"] == {"empty": 1}


def test_one_row_of_the_tdpo_layout_is_many_pairs_and_one_bad_pair_spoils_no_other() -> None:
    (entry,) = [{**entry} for entry in TDPO_FILE.values()]
    entry["pairs"] = [[0, 1], [0, 9], [0, 2]]
    dataset = prepare_pairs(
        [{"prompt": "Q", **entry}], TOKENIZER, reading=ReadOptions(on_bad_row="skip")
    )
    assert len(dataset) == 2
    assert dataset.report.skipped == {"pairs": 1}


@pytest.mark.parametrize(
    "change",
    [
        {"rows": [{**STANDARD_ROW, "chosen": " 6."}]},
        {"rows": [{**STANDARD_ROW, "append_eos": False}]},
        {"rows": [{**STANDARD_ROW, "rejected_spans": [[0, 1, 0.5]]}]},
        {"options": TokenizeOptions(joiner=" ")},
    ],
)
def test_fingerprint_changes_with_any_token_flag_or_weight(change: dict[str, Any]) -> None:
    base = prepare_pairs([STANDARD_ROW], TOKENIZER)
    assert base.fingerprint == prepare_pairs([dict(STANDARD_ROW)], TOKENIZER).fingerprint
    rows = change.get("rows", [STANDARD_ROW])
    assert prepare_pairs(rows, TOKENIZER, change.get("options")).fingerprint != base.fingerprint


def test_dataset_goes_through_a_loader_and_its_workers() -> None:
    dataset = prepare_pairs(_rows(5), TOKENIZER)
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=2, collate_fn=PairCollator(TOKENIZER.pad_token_id), num_workers=1
    )
    assert [batch["pair_index"].tolist() for batch in loader] == [[0, 1], [2, 3], [4]]
    again = pickle.loads(pickle.dumps(dataset))
    assert again.fingerprint == dataset.fingerprint
    subset = PairDataset(dataset.pairs[:2])
    assert subset.report.pairs == 2
    assert subset.fingerprint != dataset.fingerprint


def test_characters_the_tokenizer_does_not_know_are_counted() -> None:
    row = {**STANDARD_ROW, "rejected": " ☃☃."}
    report = prepare_pairs([row, STANDARD_ROW], TOKENIZER).report
    assert report.unknown == 2
    assert "2 tokens are unknown" in report.summary()


def test_texts_are_kept_only_when_asked_for() -> None:
    assert prepare_pairs(_rows(1), TOKENIZER).texts is None
    texts = prepare_pairs(_rows(1), TOKENIZER, keep_text=True).texts
    assert texts is not None
    assert texts[0].chosen.text == " 1."


def test_progress_bar_when_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    prepare_pairs(_rows(3), TOKENIZER, progress=True)
    assert "Tokenising pairs: 100%" in capsys.readouterr().err
    prepare_pairs(_rows(3), TOKENIZER)
    assert capsys.readouterr().err == ""


def test_the_report_says_how_many_pairs_carry_weights() -> None:
    rows = [*_rows(2), {**STANDARD_ROW, "rejected_spans": [[0, 1, 0.5], [1, 2, 0.0]]}]
    report = prepare_pairs(rows, TOKENIZER).report
    assert (report.weighted_rows, report.zero_weight) == (1, 1)
    assert "1 pairs have token weights other than 1" in report.summary()
    assert "(1 of them with weight 0)" in report.summary()
    assert "0 pairs have token weights" in prepare_pairs(_rows(2), TOKENIZER).report.summary()
