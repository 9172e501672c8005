"""Padded batches as streams: against a slow reading of the rows, and what is refused."""

import inspect
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from prefkit.data.batch.padded import stream_of

PAD = 0
# A row: its token ids, which of them are scored (never the first: it has no predictor), weights.
Row = tuple[list[int], list[bool], list[float]]


@st.composite
def rows_of_pairs(draw: Any) -> list[Row]:
    """Rows of 1 to 3 pairs, chosen and rejected in turn, with at least one scored token each."""
    rows = []
    for number in range(2 * draw(st.integers(1, 3))):
        length = draw(st.integers(2, 7))
        ids = draw(st.lists(st.integers(1, 9), min_size=length, max_size=length))
        scored = draw(st.lists(st.booleans(), min_size=length, max_size=length))
        scored[draw(st.integers(1, length - 1))] = True
        if number < 2:  # one pair has a prompt in common, or the order of rows may look wrong
            ids[0], scored[1] = 7, True
        kinds = st.sampled_from([0.0, 0.5, 1.0, 2.0])
        weights = draw(st.lists(kinds, min_size=length, max_size=length))
        weights[scored.index(True, 1)] = 1.5
        rows.append((ids, scored, weights))
    return rows


def padded(
    rows: list[Row], order: str, left: bool, shifted: bool, more: int = 0
) -> dict[str, torch.Tensor]:
    """The rows as a collator would make them."""
    if order == "concatenated":
        rows = rows[::2] + rows[1::2]
    longest = max(len(ids) for ids, _, _ in rows) + more
    columns: dict[str, list] = {k: [] for k in ("input_ids", "attention_mask", "labels", "weights")}
    for ids, scored, weights in rows:
        filler = longest - len(ids)
        labels = [token if one else -100 for token, one in zip(ids, scored, strict=True)]
        for name, values, pad in (
            ("input_ids", ids, PAD),
            ("attention_mask", [1] * len(ids), 0),
            ("labels", labels, -100),
            ("weights", weights, 0.0),
        ):
            line = [pad] * filler + values if left else values + [pad] * filler
            if shifted and name in ("labels", "weights"):
                line = [*line[1:], -100 if name == "labels" else 0.0]
            columns[name].append(line)
    return {name: torch.tensor(lines) for name, lines in columns.items()}


def slowly(rows: list[Row]) -> list[tuple[int, list[int], int, float]]:
    """(segment, the tokens up to the predictor, the target, its weight) of all that is scored."""
    return [
        (segment, ids[:place], ids[place], weights[place])
        for segment, (ids, scored, weights) in enumerate(rows)
        for place in range(1, len(ids))
        if scored[place]
    ]


def read_back(made: Any) -> list[tuple[int, list[int], int, float]]:
    """The same of a stream: what stands in the rows before the positions."""
    ids, mask = made["input_ids"], made["attention_mask"].bool()
    found = []
    for position, *one in zip(
        *(made[name].tolist() for name in ("positions", "segments", "targets", "weights")),
        strict=True,
    ):
        row, column = divmod(position, ids.shape[1])
        assert mask[row, : column + 1].all()  # padding is behind, for every reader
        found.append((one[0], ids[row, : column + 1].tolist(), *one[1:]))
    return found


@settings(max_examples=150, deadline=None)
@given(
    rows=rows_of_pairs(),
    order=st.sampled_from(["interleaved", "concatenated"]),
    left=st.booleans(),
    shifted=st.booleans(),
    more=st.integers(0, 2),
)
def test_the_stream_is_what_a_slow_reading_finds(
    rows: list[Row], order: Any, left: bool, shifted: bool, more: int
) -> None:
    batch = padded(rows, order, left, shifted, more)
    before = {name: value.clone() for name, value in batch.items()}
    made = stream_of(batch, order, shifted=shifted)
    key = (lambda one: one[0]) if order == "concatenated" else None
    found, want = read_back(made), slowly(rows)
    assert (sorted(found, key=key) if key else found) == want
    assert made["num_scored"] == sum(weight != 0 for *_, weight in want)
    assert made["num_tokens"] == sum(len(ids) for ids, _, _ in rows)
    assert made["pair_index"].tolist() == list(range(len(rows) // 2))
    assert all(torch.equal(batch[name], before[name]) for name in batch)


PAIR: list[Row] = [
    ([5, 6, 7, 8], [False, False, True, True], [1.0] * 4),
    ([5, 6, 9], [False, False, True], [1.0] * 3),
]
OTHER: list[Row] = [
    ([3, 4, 7], [False, False, True], [1.0] * 3),
    ([3, 4, 2, 1], [False, False, True, True], [1.0] * 4),
]


def test_a_batch_of_trl_says_its_order_by_itself() -> None:
    batch = padded(PAIR + OTHER, "concatenated", left=False, shifted=False)
    batch["completion_mask"] = (batch.pop("labels") != -100).long()
    del batch["weights"]
    made = stream_of(batch)
    assert made["segments"].tolist() == [0, 0, 2, 1, 3, 3]
    assert made["targets"].tolist() == [7, 8, 7, 9, 2, 1]
    assert made["weights"].tolist() == [1.0] * 6


def test_a_label_behind_the_end_of_a_row_is_read() -> None:
    """As loaders make them that cut a text into ids[:-1] and labels ids[1:]."""
    batch = {
        "input_ids": torch.tensor([[5, 6, 7], [5, 6, PAD]]),
        "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
        "labels": torch.tensor([[-100, 7, 8], [-100, 9, -100]]),
    }
    made = stream_of(batch, "interleaved", shifted=True)
    assert made["targets"].tolist() == [7, 8, 9]
    assert made["positions"].tolist() == [1, 2, 4]


def test_margins_and_position_ids_are_handed_on_and_words_left_out() -> None:
    batch: dict[str, Any] = padded(PAIR, "interleaved", left=True, shifted=False)
    batch |= {"margins": torch.tensor([0.5]), "prompt": ["5 6"]}
    batch["position_ids"] = torch.tensor([[0, 1, 2, 3], [9, 0, 1, 2]])
    made = stream_of(batch, "interleaved")
    assert made["margins"].tolist() == [0.5]
    assert made["position_ids"].tolist() == [[0, 1, 2, 3], [0, 1, 2, 9]]
    assert "prompt" not in made


def test_positions_of_several_kinds_move_with_their_rows() -> None:
    """As Qwen2-VL has them: time, height and width."""
    batch = padded(PAIR, "interleaved", left=True, shifted=False)
    one = torch.tensor([[0, 1, 2, 3], [9, 0, 1, 2]])
    batch["position_ids"] = torch.stack([one, one + 10, one + 20])
    found = stream_of(batch, "interleaved")["position_ids"]
    want = torch.tensor([[0, 1, 2, 3], [0, 1, 2, 9]])
    assert torch.equal(found, torch.stack([want, want + 10, want + 20]))


def test_narrow_integers_are_token_ids_as_well() -> None:
    batch = padded(PAIR + OTHER, "interleaved", left=False, shifted=False)
    narrow = {k: v.int() if k != "weights" else v for k, v in batch.items()}
    made, want = (stream_of(one, "interleaved") for one in (narrow, batch))
    assert made["targets"].dtype == torch.int64
    for name in ("targets", "positions", "segments"):
        assert torch.equal(made[name], want[name])


class Waits(TorchDispatchMode):
    """Notes the operations that would wait for a device: they need values on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name == "index" and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if by_mask or name in ("_local_scalar_dense", "nonzero", "masked_select", "equal"):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("left", [False, True])
def test_a_device_is_waited_for_once(left: bool) -> None:
    """By one `tolist`, which is no operation; everything else stays where it is."""
    batch = padded(PAIR + OTHER, "interleaved", left, shifted=False)
    with Waits() as waits:
        batch["labels"].max().item()  # it would be seen
        stream_of(batch, "interleaved")
    assert waits.found == ["_local_scalar_dense"]
    source = inspect.getsource(sys.modules[stream_of.__module__])
    assert source.count(".tolist()") == 1


def changed(**values: Any) -> dict[str, Any]:
    """A good batch with some of its tensors replaced, or left out where None."""
    batch = {**padded(PAIR, "interleaved", left=False, shifted=False), **values}
    return {name: value for name, value in batch.items() if value is not None}


def two_pairs(order: str, **how: Any) -> dict[str, Any]:
    return padded(PAIR + OTHER, order, **{"left": False, "shifted": False, **how})


ODD = {name: value[:1] for name, value in changed().items()}
SCORED = torch.tensor([[-100, -100, 7, 8], [-100, -100, 9, -100]])
REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], list[str]]] = {
    "an odd number of rows": (ODD, {}, ["(1, 4)", "(2P, L)"]),
    "labels of another shape": (changed(labels=SCORED[:, 1:]), {}, ["labels", "(2, 3)"]),
    "a row without a scored token": (
        changed(labels=torch.where(torch.tensor([[False], [True]]), -100, SCORED)),
        {},
        ["row 1", "no token is scored"],
    ),
    "a row of weight 0": (
        changed(weights=torch.tensor([[0.0] * 4, [1.0] * 4])),
        {},
        ["row 0", "weight 0"],
    ),
    "only its first token scored": (
        changed(labels=torch.tensor([[5, -100, -100, -100], [-100, -100, 9, -100]])),
        {},
        ["row 0", "no token is scored"],
    ),
    "a negative weight": (
        changed(weights=torch.tensor([[1.0, 1, 1, 1], [1, 1, -1, 1]])),
        {},
        ["row 1", "≥ 0"],
    ),
    "no weight": (
        changed(weights=torch.tensor([[1.0, 1, float("nan"), 1], [1, 1, 1, 1]])),
        {},
        ["row 0", "finite"],
    ),
    "padding that is scored": (
        changed(labels=torch.tensor([[-100, -100, 7, 8], [-100, -100, 9, PAD]])),
        {},
        ["row 1", "attention_mask is 0"],
    ),
    "labels that are shifted": (two_pairs("interleaved", shifted=True), {}, ["shifted=True"]),
    "labels that are not": (two_pairs("interleaved"), {"shifted": True}, ["shifted=False"]),
    "labels of other tokens": (
        changed(labels=torch.tensor([[-100, -100, 7, 3], [-100, -100, 9, -100]])),
        {},
        ["row 0", "row's own tokens"],
    ),
    "the other order": (two_pairs("concatenated"), {}, ["order='concatenated'", "questions"]),
    "no order": (two_pairs("concatenated"), {"order": None}, ["order='interleaved'"]),
    "an order that is none": (changed(), {"order": "chosen"}, ["'chosen'"]),
    "labels and a mask": (changed(completion_mask=SCORED), {}, ["one of the two"]),
    "nothing that says what is scored": (changed(labels=None), {}, ["completion_mask"]),
    "a shifted mask": (
        changed(labels=None, completion_mask=SCORED >= 0),
        {"shifted": True},
        ["leave shifted out"],
    ),
    "pictures": (changed(pixel_values=torch.zeros(2, 3)), {}, ["pixel_values", "would not get"]),
    "no mask": (
        {k: v for k, v in changed().items() if k != "attention_mask"},
        {},
        ["no attention_mask", "ones where nothing is padded"],
    ),
    "lists": (changed(weights=[[1.0, 1.0, 1.0]] * 2), {}, ["weights", "a list", "as_tensor"]),
    "another device": (changed(margins=torch.zeros(1, device="meta")), {}, ["margins is on meta"]),
    "TRL before 0.20": (changed(chosen_input_ids=SCORED), {}, ["chosen rows first"]),
    "a number of rows": (changed(idx=torch.arange(2)), {}, ["idx", "k not in ('idx',)"]),
    "margins of rows": (changed(margins=torch.zeros(2)), {}, ["margins", "(1,)", "(2,)"]),
    "margins in integers": (changed(margins=torch.tensor([1])), {}, ["margins", "int64"]),
    "a margin that is none": (
        changed(margins=torch.tensor([float("nan")])),
        {},
        ["margins", "finite"],
    ),
    "positions of other rows": (
        changed(position_ids=torch.zeros(3, 2, 3)),
        {},
        ["position_ids", "(3, 2, 3)"],
    ),
    "labels in floats": (changed(labels=SCORED.float()), {}, ["labels", "float32"]),
    "sums of TRL": (changed(ref_chosen_logps=torch.zeros(1)), {}, ["ref_chosen_logps", "token"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_meant_is_refused_by_name(case: str) -> None:
    batch, options, words = REFUSED[case]
    with pytest.raises(ValueError) as error:
        stream_of(batch, **{"order": "interleaved", **options})
    assert all(word in str(error.value) for word in words), str(error.value)
