"""What is put around tokenised pairs before training, and the collator that takes it off again."""

from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import Dataset

from prefkit.data.batch.bundles import GroupBy
from prefkit.data.batch.collators import Layout
from prefkit.data.batch.packing import PackedDataset, pack
from prefkit.data.pair import PairBatch, TokenizedPair
from prefkit.data.streamed.rows import PASSED, StreamedRows
from prefkit.model.reference.hidden_cache import HiddenCache
from prefkit.model.reference.logp_cache import ReferenceCache
from prefkit.train.rows.even_evaluation import EvenDataset, without_fillers


class CachedRows(NamedTuple):
    """Where what is kept of a pair's reference lies; nothing is read yet.

    Attributes:
        cache: that holds it.
        rows: (t,) int64, its rows for the pair's scored tokens, chosen first.
    """

    cache: ReferenceCache | HiddenCache
    rows: np.ndarray


class CachedDataset(Dataset):
    """Tokenised pairs, each with what is kept of its reference: items (item, `CachedRows`).

    Args:
        dataset: tokenised pairs.
        cache: the complete cache of that very dataset: log-probabilities or hidden states.
    """

    def __init__(self, dataset: Any, cache: ReferenceCache | HiddenCache) -> None:
        self.dataset, self.cache = dataset, cache

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, CachedRows]:
        return self.dataset[index], CachedRows(self.cache, self.cache.rows(index))


def _is_cached(item: Any) -> bool:
    return isinstance(item, tuple) and isinstance(item[1], CachedRows)


def pair_of(item: Any) -> TokenizedPair:
    """The pair of a plain, indexed or cached item."""
    item = item[0] if _is_cached(item) else item
    return item[1] if isinstance(item, tuple) else item


def plain(dataset: Any) -> Any:
    """The tokenised pairs inside what was put around them."""
    while isinstance(dataset, CachedDataset | PackedDataset | EvenDataset):
        dataset = dataset.dataset
    return dataset


class UnwrappingCollator:
    """Collates packed, cached and plain items; cached ones bring `ref_logp` or `ref_hidden`.

    Args:
        collator: makes a `PairBatch` of plain items.
    """

    def __init__(self, collator: Any) -> None:
        self.collator = collator

    def __call__(self, items: list) -> PairBatch:
        if items[0] is PASSED:  # of a resumed stream: the loader drops the batch
            return PairBatch()
        real, counts = without_fillers(items)
        batch = self._collate(real)
        if not counts:
            batch["filler"] = True
        return batch

    def _collate(self, items: list) -> PairBatch:
        items = [one for item in items for one in (item if isinstance(item, list) else [item])]
        if not _is_cached(items[0]):
            return self.collator(items)
        batch: PairBatch = self.collator([item for item, _ in items])
        # Pair by pair, chosen first: the order of the scored tokens.
        rows = np.concatenate([cached.rows for _, cached in items])
        if (index := batch.get("token_index")) is not None:  # one of the entries of each token
            rows = rows[np.unique(index.numpy(), return_index=True)[1]]
        kept = items[0][1].cache.take(rows)
        batch["ref_logp" if kept.dim() == 1 else "ref_hidden"] = kept
        return batch


def packed(
    dataset: Any,
    budget: int,
    layout: Layout,
    seed: int | None,
    group_by: GroupBy = "question",
    whole_rows: bool = False,
) -> Any:
    """The dataset in rows of `budget` tokens (see `pack`); None and packed ones pass through.

    Raises:
        ConfigError: a pair that does not fit a row.
    """
    if dataset is None or isinstance(dataset, PackedDataset):
        return dataset
    return pack(dataset, pairs_of(dataset), budget, layout, seed, group_by, whole_rows)


def skipped_rows(dataset: Any, accelerator: Accelerator) -> int:
    """Rows of training data that were skipped; of a stream those so far, of all processes.

    Args:
        dataset: prepared rows, with whatever was put around them.
        accelerator: of the run, each of whose processes must ask.
    """
    inner = plain(dataset)
    if not isinstance(inner, StreamedRows):  # every process has read all of it
        report = getattr(inner, "report", None)
        return 0 if report is None else report.skipped.total()
    if accelerator.num_processes == 1:
        return inner.skipped
    own = torch.tensor(inner.skipped, device=accelerator.device)
    return int(accelerator.reduce(own, "sum"))


def pairs_of(dataset: Any) -> list[TokenizedPair]:
    """The tokenised pairs alone: what is cached beside them may lie on a disk, and is not read."""
    pairs = plain(dataset)
    return [pair_of(pairs[i]) for i in range(len(pairs))]
