"""Rows as a run reads them: prepared, checked against what trains, and laid out into batches."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import Dataset

from prefkit.data.batch.collators import Layout
from prefkit.data.batch.packing import PackedDataset
from prefkit.data.text.render import TokenizeOptions
from prefkit.model.loading import positions_of
from prefkit.train.rows.datasets import plain
from prefkit.train.rows.layout import check_lengths
from prefkit.train.rows.streaming import whole_stream
from prefkit.train.rows.templates import refuse_other_template, with_trained_template


class RunRows(ABC):
    """The rows of a run: `PairRows` or `SolutionRows`.

    Args:
        args: the run's options.
        tokenizer: of the policy.
        model: the causal LM that has the head: its config is read.
        collator: the user's own, or None; makes a batch of plain items.
    """

    def __init__(self, args: Any, tokenizer: Any, model: nn.Module, collator: Any = None) -> None:
        self.args, self.model, self.collator = args, model, collator
        self.tokenizer = tokenizer  # once rows are prepared, with the template that trains
        self.layout: Layout = "padded"  # a collator of the user's own makes its own

    @abstractmethod
    def read(self, rows: Any, name: str) -> Dataset | None:
        """Rows as the trainer reads them, None for None; name: "train", "eval" or "eval_NAME"."""

    @abstractmethod
    def longest(self, datasets: list[Any]) -> int:
        """Tokens of the longest sequence of prepared datasets; 0 without any."""

    @abstractmethod
    def lay_out(self, models: list[nn.Module], train: Any, evaluation: Any) -> None:
        """Chooses the layout of the batches, and makes the collator where the user gave none.

        Args:
            models: those that read the batches; they are prepared for rows without padding.
            train, evaluation: of `prepare`.

        Raises:
            ModelError, ConfigError: a layout that was asked for and cannot be had.
        """

    def packed(self, dataset: Any, training: bool = False) -> Any:
        """A prepared dataset, in rows of several sequences where the run packs."""
        return dataset

    def prepare(self, train: Any, evaluation: Any) -> tuple[Any, Any]:
        """The rows to train on, and those to evaluate on: prepared datasets, dicts of them or None.

        Raises:
            RowError, ConfigError: rows that cannot be read, or chats of another template.
        """
        train = self.read(train, "train")
        self.tokenizer = with_trained_template(self.tokenizer, self.args, plain(train))
        if isinstance(evaluation, dict):
            several = evaluation.items()
            return train, {key: self._beside(part, f"eval_{key}", train) for key, part in several}
        return train, self._beside(evaluation, "eval", train)

    def prepare_later(self, rows: Any, name: str, train: Any) -> Any:
        """Rows to evaluate on that come when the run is set up; they are not packed yet.

        Args:
            rows: of any format; those that were packed before pass through.
            name: what messages call them.
            train: the training rows, prepared.

        Raises:
            ConfigError: sequences longer than the layout can hold, or chats of another template.
        """
        if isinstance(rows, PackedDataset):
            return rows
        dataset = self._beside(rows, name, train)
        check_lengths(self.layout, self.model, self.longest([dataset]))
        return dataset

    def _beside(self, rows: Any, name: str, train: Any) -> Dataset | None:
        prepared = self.read(whole_stream(rows, name), name)
        refuse_other_template(self.tokenizer, self.args, plain(train), plain(prepared), name)
        return prepared


def datasets_of(train: Any, evaluation: Any) -> list[Any]:
    """The datasets that are there, of training and evaluation."""
    several = list(evaluation.values()) if isinstance(evaluation, dict) else [evaluation]
    return [dataset for dataset in (train, *several) if dataset is not None]


def row_options(args: Any, text_config: Any, name: str) -> dict[str, Any]:
    """How rows of any kind are checked, as keywords of `prepare_pairs` and its like.

    Args:
        args: the run's options.
        text_config: of the model: its vocabulary bounds the ids.
        name: of the rows; names the file of those that are skipped.
    """
    return {
        "vocab_size": text_config.vocab_size,
        "on_bad_row": args.on_bad_row,
        "empty": args.empty,
        "skipped_file": Path(args.output_dir or ".") / f"skipped_rows_{name}.jsonl",
    }


def tokenize_options(args: Any, text_config: Any) -> TokenizeOptions:
    """How a run's options say that rows become tokens.

    Args:
        args: has the fields of `prefkit.train.fields.TextFields`.
        text_config: of the model: how long a sequence it can read, where `max_length` is None.
    """
    return TokenizeOptions(
        max_length=args.max_length or positions_of(text_config),
        too_long=args.too_long,
        string_prompts=args.string_prompts,
        prompt_template=args.prompt_template,
        joiner=args.joiner,
        system_prompt=args.system_prompt,
        chat_template=args.chat_template,
        chat_template_kwargs=args.chat_template_kwargs or {},
    )
