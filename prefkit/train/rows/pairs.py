"""Rows of pairs as a run reads them."""

import logging
import math
from typing import Any

from torch import nn
from torch.utils.data import Dataset

from prefkit.data.batch.collators import PairCollator
from prefkit.data.batch.packing import PackedDataset, rows_of_data
from prefkit.data.dataset import PairDataset, prepare_pairs
from prefkit.data.formats.detect import ReadOptions
from prefkit.data.mismatched import with_mismatched
from prefkit.data.sources.iterable import stream_of
from prefkit.data.streamed.prepare import stream_pairs
from prefkit.data.streamed.rows import StreamedRows
from prefkit.errors import ConfigError
from prefkit.train.checks.shared_rows import check_shared_layout
from prefkit.train.config import PreferenceConfig
from prefkit.train.rows.datasets import CachedDataset, packed, pairs_of, plain
from prefkit.train.rows.layout import choose_layout, longest_sequence, say_what_trees_save
from prefkit.train.rows.run_rows import RunRows, datasets_of, row_options, tokenize_options

logger = logging.getLogger(__name__)


class PairRows(RunRows):
    """Rows of pairs, in batches of `PairCollator`."""

    def read(self, rows: Any, name: str) -> Dataset | None:
        """See `prepare_dataset`."""
        if rows is None:
            return None
        config: Any = self.model.config
        return prepare_dataset(rows, self.tokenizer, self.args, config, name)

    def longest(self, datasets: list[Any]) -> int:
        """See `longest_sequence`."""
        return longest_sequence(datasets)

    def lay_out(self, models: list[nn.Module], train: Any, evaluation: Any) -> None:
        """See `RunRows.lay_out`; packed rows are made when the reference's cache is there."""
        if self.collator is None:
            longest = self.longest(datasets_of(train, evaluation))
            self.layout = choose_layout(self.args, models, longest)
            pad: Any = self.tokenizer.pad_token_id
            needs_kl = self.args.build_objective().needs_kl
            self.collator = PairCollator(pad, self._multiple, self.layout, needs_kl)
        check_shared_layout(self.args.sequence_parallel_size, self.layout)

    def packed(self, dataset: Any, training: bool = False) -> Any:
        """Rows of `tokens_per_batch` tokens, where that is set; shuffled for training."""
        args = self.args
        if args.tokens_per_batch is None:
            say_what_trees_save(self.layout, dataset, training)
            return self._whole_rows(dataset)
        seed = args.seed if args.data_seed is None else args.data_seed
        # The collator rounds rows up: to what a multiple leaves of the budget.
        budget = args.tokens_per_batch // self._multiple * self._multiple
        seed = seed if training else None
        return packed(dataset, budget, self.layout, seed, args.group_by, self._keeps_rows_whole)

    @property
    def _keeps_rows_whole(self) -> bool:
        """Whether the loss is one of a chosen response and all its rejected ones."""
        return bool(self.args.build_objective().needs_groups)

    def _whole_rows(self, dataset: Any) -> Any:
        """Items of all pairs of a row of data, where the loss needs them in one batch."""
        if not self._keeps_rows_whole or dataset is None or isinstance(dataset, PackedDataset):
            return dataset
        if isinstance(plain(dataset), StreamedRows):
            raise ConfigError(
                "link plackett_luce needs all rejected responses of a row in one batch, which a "
                "stream of pairs does not keep together. Give a data set instead of a stream."
            )
        return rows_of_data(dataset, pairs_of(dataset), self.layout)

    @property
    def _multiple(self) -> int:
        """Tokens that the length of a row is a multiple of."""
        return math.lcm(self.args.pad_to_multiple_of or 1, self.args.sequence_parallel_size)


def prepare_dataset(
    rows: Any,
    tokenizer: Any,
    args: PreferenceConfig,
    model_config: Any,
    name: str,
    *,
    split: str = "train",
) -> Dataset:
    """Rows of any format as tokenised pairs; prepared datasets pass through, streams stay streams.

    Args:
        rows: whatever `prefkit.data.prepare_pairs` reads, or a Dataset of tokenised pairs.
        model_config: the model's config: its longest sequence and size of vocabulary count.
        name: "train", "eval" or "eval_NAME"; names the file of skipped rows.

    Raises:
        RowError, PrefkitError: see `prepare_pairs`.
    """
    objective = args.build_objective()
    margins, point = objective.needs_margins, objective.needs_reference_point
    text_config = model_config.get_text_config()
    options = tokenize_options(args, text_config)
    if isinstance(rows, PairDataset | CachedDataset | StreamedRows):
        if margins and isinstance(prepared := plain(rows), PairDataset):
            _check_margins(prepared, name)
        return _with_mismatched(rows, options.max_length, name) if point else rows
    checks = row_options(args, text_config, name)
    vocab_size, skipped = checks["vocab_size"], checks["skipped_file"]
    level = args.resolved_level
    more = {"margins": margins, "unpaired": objective.mean_over == "sides"}
    reading = ReadOptions.of(args, level=level, skipped_file=skipped, **more)
    if (stream := stream_of(rows, split)) is not None:
        if point:
            raise ConfigError(_NO_STREAM)
        part = (args.process_index, args.world_size)
        return stream_pairs(stream, tokenizer, options, reading, vocab_size=vocab_size, part=part)
    quiet = args.process_index > 0
    dataset = prepare_pairs(
        rows, tokenizer, options, reading, split=split, vocab_size=vocab_size, quiet=quiet
    )
    if not len(dataset):
        raise ConfigError(
            f"The {name} data hold no usable pair. Look at the rows that were skipped."
        )
    if args.method == "cdpo" and not dataset.report.weighted_rows:
        logger.warning(
            "method cdpo: no row of the %s data carries weights, so this is plain DPO. Give "
            "rejected_weights, rejected_spans or a scored file (docs/data.md).",
            name,
        )
    if objective.mean_over == "sides" and name == "train":
        _say_balance(dataset, args)
    return _with_mismatched(dataset, options.max_length, name) if point else dataset


def _say_balance(dataset: PairDataset, args: PreferenceConfig) -> None:
    """Says where desirable and undesirable responses are not balanced as KTO's paper has them."""
    sides = ([pair.chosen for pair in dataset.pairs], [pair.rejected for pair in dataset.pairs])
    good, bad = (sum(bool(side.scored.any()) for side in of_kind) for of_kind in sides)
    weights = args.desirable_weight, args.undesirable_weight
    if good and bad and all(weights) and not 1 <= (weights[0] * good) / (weights[1] * bad) <= 4 / 3:
        low, high = weights[1] * bad / good, 4 / 3 * weights[1] * bad / good
        logger.warning(
            "kto: %d desirable and %d undesirable responses with weights %g and %g. Its paper "
            "keeps weight times number between 1:1 and 4:3: desirable_weight from %.3g to %.3g.",
            *(good, bad, *weights, low, high),
        )


_NO_STREAM = (
    "kto estimates its reference point from responses to other prompts of the data set, and a "
    "stream has none beside a row. Give a data set instead of a stream, or set reference_point: "
    "false."
)


def _with_mismatched(dataset: Any, max_length: int | None, name: str) -> PairDataset:
    """The data with mismatched responses; those that were prepared without them get them now."""
    if not isinstance(dataset, PairDataset):
        raise ConfigError(_NO_STREAM)
    if all(pair.mismatched for pair in dataset.pairs):
        return dataset
    pairs = with_mismatched(dataset.pairs, max_length, name)
    return PairDataset(pairs, dataset.report, dataset.texts, dataset.chat_template)


def _check_margins(dataset: PairDataset, name: str) -> None:
    """Pairs that were prepared before have the margins that the loss reads."""
    missing = next((pair for pair in dataset.pairs if pair.margin is None), None)
    if missing is not None:
        raise ConfigError(
            f"margin_weight is set, but {missing.source}, row {missing.row} of the {name} data was "
            "prepared without its margin. Prepare the pairs with ReadOptions(margins=True), or "
            "leave margin_weight out."
        )
