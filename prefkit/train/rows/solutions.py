"""Rows of solutions as a run reads them."""

from typing import Any

from torch import nn
from torch.utils.data import Dataset

from prefkit.data.batch.collators import SolutionCollator
from prefkit.data.solutions import SolutionDataset, prepare_solutions
from prefkit.data.sources.iterable import stream_of
from prefkit.data.streamed.prepare import stream_solutions
from prefkit.data.streamed.rows import StreamedRows
from prefkit.train.rows.layout import choose_layout
from prefkit.train.rows.run_rows import RunRows, datasets_of, row_options, tokenize_options


class SolutionRows(RunRows):
    """Rows of solutions, in batches of `SolutionCollator`."""

    def read(self, rows: Any, name: str) -> Dataset | None:
        """Rows of any format as tokenised solutions; prepared ones and streams pass through.

        Raises:
            RowError, PrefkitError: see `prepare_solutions`.
        """
        if rows is None or isinstance(rows, SolutionDataset | StreamedRows):
            return rows
        args, config = self.args, self.model.config
        text: Any = config.get_text_config()  # type: ignore[union-attr, operator]
        options = tokenize_options(args, text)
        checks = row_options(args, text, name)
        checks["columns"] = {} if args.columns is None else args.columns
        if (stream := stream_of(rows, "train")) is not None:
            part = (args.process_index, args.world_size)
            return stream_solutions(stream, self.tokenizer, options, part=part, **checks)
        quiet = args.process_index > 0
        return prepare_solutions(rows, self.tokenizer, options, quiet=quiet, **checks)

    def longest(self, datasets: list[Any]) -> int:
        """As the datasets' own reports have it."""
        found = (
            dataset.longest if isinstance(dataset, StreamedRows) else dataset.report.longest
            for dataset in datasets
            if dataset
        )
        return max(found, default=0)

    def lay_out(self, models: list[nn.Module], train: Any, evaluation: Any) -> None:
        """See `RunRows.lay_out`; a solution shares nothing, so its rows are separate or padded."""
        if self.args.layout != "padded":
            longest = self.longest(datasets_of(train, evaluation))
            found = choose_layout(self.args, models, longest)
            self.layout = "padded" if found == "padded" else "separate"
        pad: Any = self.tokenizer.pad_token_id
        self.collator = SolutionCollator(pad, self.args.pad_to_multiple_of, self.layout)
