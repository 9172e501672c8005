"""Sources of rows → PairDataset, with an account of every row: used, skipped, or refused.

Nothing disappears quietly: a bad row stops the preparation by default, and otherwise is counted
in the report and listed in a file.
"""

import hashlib
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch.utils.data
from tqdm.auto import tqdm

from prefkit.data.formats.detect import ReadOptions, iter_pairs
from prefkit.data.pair import Pair, TokenizedPair
from prefkit.data.questions import joined
from prefkit.data.report import DataReport, Incident, write_incidents
from prefkit.data.sources.files import Rows, load_rows
from prefkit.data.text.render import Renderer, TokenizeOptions, is_chat, template_used
from prefkit.data.tokens.tokenize import tokenize_pairs
from prefkit.errors import PrefkitError, RowError
from prefkit.files.atomic import check_writable

logger = logging.getLogger(__name__)
CHUNK = 256  # pairs a call of the tokenizer: enough to keep its threads busy
BAR_FROM = 2000  # rows from which a progress bar is worth its line


class PairDataset(torch.utils.data.Dataset):
    """Tokenised pairs in order.

    Items are `(index, TokenizedPair)`: the index travels with the pair so that the collator can
    say which pair of the dataset a row belongs to, whatever the sampler did.

    Attributes:
        pairs: the tokenised pairs.
        report: what became of the rows.
        texts: the same pairs as text, where they were kept.
        chat_template: what the messages among them were written with; None without messages.
    """

    def __init__(
        self,
        pairs: Sequence[TokenizedPair],
        report: DataReport | None = None,
        texts: Sequence[Pair] | None = None,
        chat_template: Any = None,
    ) -> None:
        self.pairs = list(pairs)
        self.chat_template = chat_template
        self.texts = None if texts is None else list(texts)
        self.report = report if report is not None else _report_of(self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[int, TokenizedPair]:
        index = range(len(self.pairs))[index]  # resolves negative indices, refuses others
        return index, self.pairs[index]

    @property
    def fingerprint(self) -> str:
        """Hex digest over ids, flags and weights: equal only where every token is."""
        return self.report.fingerprint


def prepare_pairs(
    source: Any,
    tokenizer: Any,
    options: TokenizeOptions | None = None,
    reading: ReadOptions | None = None,
    *,
    split: str = "train",
    vocab_size: int | None = None,
    progress: bool | None = None,
    keep_text: bool = False,
    quiet: bool = False,
) -> PairDataset:
    """Read, check and tokenise preference pairs.

    Args:
        source: anything `load_rows` takes, `Pair` objects, or a list of such sources, which are
            put one after the other (SCDPO's mixture of naive and step-controlled pairs).
        tokenizer: a fast transformers tokenizer.
        options: how pairs become ids, see `TokenizeOptions`.
        reading: how rows are read, see `ReadOptions`.
        split: which split of a dataset with several.
        vocab_size: size of the model's embedding; ids beyond it are refused.
        progress: show a progress bar; None = from 2000 rows on.
        keep_text: keep the pairs' texts beside their ids (`prefkit inspect` shows them).
        quiet: show no bar, and do not say what was skipped or cut, as the report does: for all
            processes of a run but the first.

    Raises:
        RowError: a bad row, unless the options say to skip it (`LeftOut`).
        PrefkitError: an unreadable source, a slow tokenizer, an unwritable `skipped_file`, or no
            pair left.
    """
    options, reading = options or TokenizeOptions(), reading or ReadOptions()
    renderer = Renderer(tokenizer, options)
    if reading.skipped_file is not None:
        check_writable(Path(reading.skipped_file).parent, "skipped_file")
    sources = [
        one if _is_pairs(one) else load_rows(one, split=split) for one in _split_sources(source)
    ]
    report = _open_report(sources, reading.skipped_file)
    keep = Keeper(report, reading, renderer, [] if keep_text else None)
    _tokenize(_read(sources, reading), keep, vocab_size, False if quiet else progress)
    _close_report(keep.pairs, report, quiet)
    return PairDataset(
        joined(keep.pairs), report, keep.texts, template_used(renderer, report.chats)
    )


class Keeper:
    """Decides what happens to each pair, and keeps the good ones (and their texts, if asked)."""

    def __init__(
        self,
        report: DataReport,
        reading: ReadOptions,
        renderer: Renderer,
        texts: list[Pair] | None,
    ) -> None:
        self.report, self.options = report, renderer.options
        self.left_out = reading.left_out(self.options.too_long)
        self.renderer, self.texts = renderer, texts
        self.pairs: list[TokenizedPair] = []

    def add(self, chunk: list[Pair | RowError], vocab_size: int | None) -> None:
        pairs = [item for item in chunk if isinstance(item, Pair)]
        tokenized = iter(tokenize_pairs(pairs, self.renderer, vocab_size))
        for item in chunk:  # keep the order of the rows, so that the first error is the first
            result = item if isinstance(item, RowError) else next(tokenized)
            if isinstance(result, RowError):
                self.report.skip(self.left_out.reason(result), result)
            else:
                assert isinstance(item, Pair)
                self._accept(item, result)

    def _accept(self, pair: Pair, tokenized: TokenizedPair) -> None:
        self.pairs.append(tokenized)
        self.report.chats += is_chat(pair, self.options)
        if self.texts is not None:
            self.texts.append(pair)
        self.report.count(tokenized, self.renderer.unknown)
        cut = [
            name
            for name, side in (("chosen", tokenized.chosen), ("rejected", tokenized.rejected))
            if pair.append_eos and not side.eos and not getattr(pair, name).absent
        ]
        if cut:
            self.report.truncated += 1
            problem = f"cut to {self.options.max_length} tokens"
            self.report.incidents += [
                Incident(pair.source, pair.row, name, problem, "truncated") for name in cut
            ]


def _tokenize(
    items: Iterator[Pair | RowError], keep: Keeper, vocab_size: int | None, progress: bool | None
) -> None:
    """Tokenises all items in chunks, with a bar on a terminal where that takes a while."""
    total = sum(keep.report.sources.values())
    shown = progress if progress is not None else total >= BAR_FROM
    with tqdm(total=total, desc="Tokenising pairs", unit="row", disable=not shown) as bar:
        while chunk := list(islice(items, CHUNK)):
            keep.add(chunk, vocab_size)
            bar.update(len(chunk))


def _open_report(sources: list[Any], skipped_file: str | os.PathLike[str] | None) -> DataReport:
    report = DataReport(skipped_file=None if skipped_file is None else os.fspath(skipped_file))
    for one in sources:
        name = one.source if isinstance(one, Rows) else "pairs in memory"
        report.sources[name] = report.sources.get(name, 0) + len(one)
    return report


def _close_report(pairs: list[TokenizedPair], report: DataReport, quiet: bool) -> None:
    report.fingerprint = _fingerprint(pairs)
    if report.skipped_file is not None:
        write_incidents(report.skipped_file, report.incidents)
    if not pairs:
        names = ", ".join(report.sources)
        first = report.incidents[0] if report.incidents else None
        cause = f" The first: row {first.row}, {first.field}: {first.problem}." if first else ""
        raise PrefkitError(
            f"{names}: no usable pair, {report.skipped.total()} were skipped.{cause} Check the "
            "rows with `prefkit inspect`."
        )
    if (report.incidents or report.unknown) and not quiet:
        logger.warning("%s", report.summary())


def _read(sources: Iterable[Any], options: ReadOptions) -> Iterator[Pair | RowError]:
    for source in sources:
        yield from iter_pairs(source, options) if isinstance(source, Rows) else source


def _split_sources(source: Any) -> list[Any]:
    """A list of rows is one source; a list of paths, datasets or lists is several."""
    if not isinstance(source, list | tuple) or _is_pairs(source):
        return [source]
    several = source and all(
        isinstance(one, str | os.PathLike | list | tuple) or hasattr(one, "column_names")
        for one in source
    )
    return list(source) if several else [source]


def _is_pairs(source: Any) -> bool:
    return isinstance(source, list | tuple) and bool(source) and isinstance(source[0], Pair)


def _report_of(pairs: list[TokenizedPair]) -> DataReport:
    report = DataReport(sources={"tokenised pairs": len(pairs)}, fingerprint=_fingerprint(pairs))
    for pair in pairs:
        report.count(pair)
    return report


def _fingerprint(pairs: list[TokenizedPair]) -> str:
    digest = hashlib.sha256(b"prefkit pairs 1")
    for pair in pairs:
        for side in (pair.chosen, pair.rejected):
            digest.update(np.int64(len(side.ids)).tobytes())
            for values, kind in ((side.ids, "<i4"), (side.scored, "u1"), (side.weights, "<f4")):
                digest.update(np.ascontiguousarray(values, dtype=kind).tobytes())
    return digest.hexdigest()
