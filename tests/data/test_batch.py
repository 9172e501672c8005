"""The collator in its three layouts: what is read, what is scored, and that they agree."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from prefkit.data import PairCollator, PairDataset, prepare_pairs
from prefkit.data.batch.stream import Node
from prefkit.errors import ConfigError
from tests.data.data_cases import STANDARD_ROW, STEP_ROW, TINY, character_tokenizer

LAYOUTS = ("padded", "separate", "shared", "tree")


@pytest.fixture
def dataset() -> PairDataset:
    row = {**STANDARD_ROW, "rejected_spans": [[1, 2, 0.5]]}
    return prepare_pairs([STEP_ROW, row], character_tokenizer())


def sides_of(dataset: PairDataset) -> list[Any]:
    return [side for pair in dataset.pairs for side in (pair.chosen, pair.rejected)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_scored_tokens_and_their_predictors(dataset: PairDataset, layout: Any) -> None:
    """Every scored token once, with the ids that come before it read up to its predictor."""
    batch = PairCollator(pad_token_id=0, layout=layout)([dataset[0], dataset[1]])
    for segment, side in enumerate(sides_of(dataset)):
        mine = batch["segments"] == segment
        scored = [j for j in range(1, len(side.ids)) if side.scored[j]]
        assert batch["targets"][mine].tolist() == [int(side.ids[j]) for j in scored]
        assert batch["weights"][mine].tolist() == [float(side.weights[j]) for j in scored]
        for row, j in zip(batch["positions"][mine].tolist(), scored, strict=True):
            assert history(batch, row) == side.ids[:j].tolist()
    assert batch["num_scored"] == len(batch["positions"])
    assert batch["text_tokens"] == sum(len(side.ids) for side in sides_of(dataset))


def history(batch: Any, place: int) -> list[int]:
    """The ids that the token at a place of the flattened row may attend to, itself included."""
    flat = batch["input_ids"].flatten().tolist()
    if "stream" not in batch:
        length = batch["input_ids"].shape[1]
        return flat[place - place % length : place + 1]
    for one in batch["stream"].attends():
        if one.queries.start <= place < one.queries.stop:
            before = [flat[place] for span in one.context for place in range(*span)]
            return before + flat[one.queries.start : place + 1]
    raise AssertionError(place)


def test_padded_rows(dataset: PairDataset) -> None:
    batch = PairCollator(pad_token_id=0)([dataset[0], dataset[1]])
    length = max(len(side.ids) for side in sides_of(dataset))
    assert batch["input_ids"].shape == (4, length)
    for r, side in enumerate(sides_of(dataset)):
        n = len(side.ids)
        assert batch["input_ids"][r, :n].tolist() == side.ids.tolist()
        assert batch["attention_mask"][r].tolist() == [1] * n + [0] * (length - n)
    assert batch["num_tokens"] == int(batch["attention_mask"].sum())


def test_one_row_reads_a_shared_prefix_once(dataset: PairDataset) -> None:
    separate, shared = (
        PairCollator(0, layout=layout)([dataset[0], dataset[1]])  # type: ignore[arg-type]
        for layout in ("separate", "shared")
    )
    saved = sum(pair.shared for pair in dataset.pairs)
    assert saved > 0
    assert shared["num_tokens"] == separate["num_tokens"] - saved == len(shared["stream"])
    assert separate["num_tokens"] == separate["text_tokens"]
    first = dataset.pairs[0]
    tails = [len(side.ids) - first.shared for side in (first.chosen, first.rejected)]
    longest, other = sorted(tails, reverse=True)
    assert shared["stream"].nodes[:3] == (Node(first.shared), Node(longest, 0), Node(other, 0))
    positions = shared["position_ids"][0].tolist()
    assert positions[: first.shared] == list(range(first.shared))
    assert positions[longest + first.shared] == first.shared  # the other side goes on, too


def test_pair_index_is_the_place_in_the_dataset(dataset: PairDataset) -> None:
    collate = PairCollator(pad_token_id=0)
    assert collate([dataset[1], dataset[0]])["pair_index"].tolist() == [1, 0]
    assert dataset[-1][0] == 1
    assert collate(dataset.pairs)["pair_index"].tolist() == [0, 1]
    with pytest.raises(IndexError):
        dataset[2]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_padding_to_a_multiple_and_dtypes(dataset: PairDataset, layout: Any) -> None:
    batch = PairCollator(pad_token_id=7, pad_to_multiple_of=64, layout=layout)([dataset[1]])
    assert batch["input_ids"].shape[1] == 64
    assert batch["input_ids"][0, -1] == 7
    assert batch["num_tokens"] < 64 * len(batch["input_ids"])
    tensors = {name: value for name, value in batch.items() if isinstance(value, torch.Tensor)}
    dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
    assert dtypes.pop("weights") == torch.float32
    assert set(dtypes.values()) == {torch.int64}


def test_no_padding_token_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no padding token\. Set tokenizer\.pad_token"):
        PairCollator(pad_token_id=None)


def test_the_loop_of_the_page_on_data_runs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text("utf-8")
    (loop,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names = {"torch": torch, "tokenizer": AutoTokenizer.from_pretrained(TINY)}
    exec(loop.replace("pairs.jsonl", str(TINY.parent / "pairs.jsonl")), names)
    rows = names["rows"]
    assert names["targets"].shape == names["weights"].shape == rows.shape
    sides = names["batch"]["input_ids"].shape[0]
    assert names["segments"].unique().tolist() == list(range(sides))
