"""Evaluation on several processes that counts every pair once.

Every process must run the same number of forwards: a sharded model gathers its layers with all of
them. Where the pairs do not come out even, accelerate hands out the first ones once more, and
their metrics count twice. So the rest is filled up with items that say of themselves that they are
fillers: a batch leaves them out, and one made of nothing else runs but counts nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch.utils.data import Dataset


@dataclass(frozen=True)
class Filler:
    """Stands in for an item that is not there; `item` is what a batch of fillers alone runs on."""

    item: Any


class EvenDataset(Dataset):
    """A dataset, filled up to a multiple of `size` items.

    Args:
        dataset: items of any kind (a pair, or a row of several), at least one.
        size: items in one batch of all processes.
    """

    def __init__(self, dataset: Any, size: int) -> None:
        self.dataset = dataset
        self.real = len(dataset)
        self._length = -(-self.real // size) * size

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index] if index < self.real else Filler(self.dataset[0])


def evened(kept: Any, asked: Any, size: int) -> tuple[Any, Any]:
    """A trainer's evaluation sets and the one that is asked for, filled up with `EvenDataset`.

    Args:
        kept: `eval_dataset` of a trainer: a dataset, a dict of them or None.
        asked: the argument of `get_eval_dataloader`: a dataset, a key of `kept`, or None for it.
        size: items in one batch of all processes.

    Returns:
        Both. A set that is asked for by name is filled up inside `kept`, because Trainer keeps
        persistent loaders by name. Where there is no single set, both are as they were.
    """
    named = isinstance(asked, str)
    given = kept[asked] if named else kept if asked is None else asked
    if given is None or isinstance(given, dict):
        return kept, asked  # Trainer says what is wrong
    even = EvenDataset(given, size)
    return ({**kept, asked: even}, asked) if named else (kept, even)


def without_fillers(items: list) -> tuple[list, bool]:
    """The real items of a batch and True, or one stand-in and False where there are none."""
    real = [item for item in items if not isinstance(item, Filler)]
    return (real, True) if real else ([items[0].item], False)


def counted_pairs(batch: Mapping[str, Any]) -> int:
    """Pairs whose metrics count: all of the batch, or none where it only fills up."""
    return 0 if batch.get("filler") else len(batch["pair_index"])
