"""The collator shifts once and pads right; nothing downstream has to."""

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from prefkit.data import PairCollator, PairDataset, prepare_pairs
from prefkit.errors import ConfigError
from tests.data_cases import STANDARD_ROW, STEP_ROW, TINY, character_tokenizer


@pytest.fixture
def dataset() -> PairDataset:
    row = {**STANDARD_ROW, "rejected_spans": [[1, 2, 0.5]]}
    return prepare_pairs([STEP_ROW, row], character_tokenizer())


def test_entries_speak_of_the_next_token(dataset: PairDataset) -> None:
    batch = PairCollator(pad_token_id=0)([dataset[0], dataset[1]])
    sides = [side for pair in dataset.pairs for side in (pair.chosen, pair.rejected)]
    assert batch["input_ids"].shape == (4, max(len(side.ids) for side in sides))
    for r, side in enumerate(sides):
        n = len(side.ids)
        assert batch["input_ids"][r, :n].tolist() == side.ids.tolist()
        assert batch["attention_mask"][r].tolist() == [1] * n + [0] * (batch_length(batch) - n)
        for j in range(batch_length(batch)):
            scored = j + 1 < n and bool(side.scored[j + 1])
            assert batch["targets"][r, j] == (side.ids[j + 1] if scored else -100)
            assert batch["segments"][r, j] == (r if scored else -1)
            assert batch["weights"][r, j] == (side.weights[j + 1] if scored else 0)


def batch_length(batch: object) -> int:
    return batch["input_ids"].shape[1]  # type: ignore[index]


def test_pair_index_is_the_place_in_the_dataset(dataset: PairDataset) -> None:
    collate = PairCollator(pad_token_id=0)
    assert collate([dataset[1], dataset[0]])["pair_index"].tolist() == [1, 0]
    assert dataset[-1][0] == 1
    assert collate(dataset.pairs)["pair_index"].tolist() == [0, 1]
    with pytest.raises(IndexError):
        dataset[2]


def test_padding_to_a_multiple_and_dtypes(dataset: PairDataset) -> None:
    batch = PairCollator(pad_token_id=7, pad_to_multiple_of=64)([dataset[1]])
    assert batch_length(batch) == 64
    assert batch["input_ids"][0, -1] == 7
    assert batch.pop("num_scored") == len(batch["rows"])
    flat = batch["targets"].reshape(-1)
    assert (flat[batch["rows"]] >= 0).all()
    assert len(batch["rows"]) == (flat >= 0).sum()
    dtypes = {name: tensor.dtype for name, tensor in batch.items()}  # type: ignore[attr-defined]
    assert dtypes.pop("weights") == torch.float32
    assert set(dtypes.values()) == {torch.int64}


def test_no_padding_token_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no padding token\. Set tokenizer\.pad_token"):
        PairCollator(pad_token_id=None)


def test_the_loop_of_the_page_on_data_runs() -> None:
    page = (Path(__file__).parents[1] / "docs" / "data.md").read_text("utf-8")
    (loop,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names = {"torch": torch, "tokenizer": AutoTokenizer.from_pretrained(TINY)}
    exec(loop.replace("pairs.jsonl", str(TINY.parent / "pairs.jsonl")), names)
    rows, length = names["batch"]["input_ids"].shape
    assert names["targets"].shape == names["weights"].shape == (rows * length,)
    assert names["segments"].unique().tolist() == list(range(-1, rows))
