"""Rows of single solutions → SolutionDataset: what supervised fine-tuning learns from.

    prompt     text, or chat messages
    prefix     optional: text between prompt and response that is context, never learnt
    response   what is learnt, to the end-of-sequence token (`append_eos: false`: without it); text
               or messages, also under the names completion and output
    messages   in place of both: a chat whose last message is the response

Rendered and tokenised as the responses of pairs are (tokens/sequence.py), so a model is fine-tuned
on exactly the sequences that preference training reads later.
"""

import logging
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch.utils.data

from prefkit.data.formats.fields.row import Row, iter_rows
from prefkit.data.formats.other_trainers import Columns, check_columns
from prefkit.data.formats.solutions import SOLUTION_FIELDS, read_solution
from prefkit.data.left_out import LeftOut
from prefkit.data.pair import Solution, TokenizedSide
from prefkit.data.report import Incident, two_forms, write_incidents
from prefkit.data.sources.files import load_rows
from prefkit.data.text.render import Renderer, TokenizeOptions, is_chat, template_used
from prefkit.data.tokens.encode import encode
from prefkit.data.tokens.sequence import Texts, finish_side, try_write
from prefkit.errors import PrefkitError, RowError
from prefkit.files.atomic import check_writable

logger = logging.getLogger(__name__)
CHUNK = 512  # sequences a call of the tokenizer


@dataclass
class SolutionReport:
    """What `prepare_solutions` did.

    Attributes:
        rows: rows of the source.
        used: rows in the dataset.
        chats: those of them that a chat template wrote.
        tokens, scored: all tokens, and those that are learnt, end-of-sequence tokens included.
        longest: tokens of the longest sequence.
        truncated: solutions that lost their end.
        skipped: reason ("too long", or the field at fault) → rows skipped for it.
        incidents: every skipped or cut row.
    """

    rows: int = 0
    used: int = 0
    chats: int = 0
    tokens: int = 0
    scored: int = 0
    longest: int = 0
    truncated: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    incidents: list[Incident] = field(default_factory=list)

    def summary(self) -> str:
        """A few lines for people."""
        lines = [
            f"{self.used} solutions from {self.rows} rows; {self.tokens} tokens, {self.scored} of "
            f"them learnt, longest sequence {self.longest}"
        ]
        lines += two_forms(self.chats, self.used, "solutions")
        if self.skipped:
            reasons = ", ".join(f"{reason} ({n})" for reason, n in self.skipped.most_common())
            lines.append(f"{self.skipped.total()} skipped: {reasons}")
        if self.truncated:
            lines.append(f"{self.truncated} solutions had their end cut off")
        return "\n".join(lines)


class SolutionDataset(torch.utils.data.Dataset):
    """Tokenised solutions in order; items are `(index, TokenizedSide)`, as those of a PairDataset.

    Attributes:
        sides: one sequence a row.
        report: what became of the rows.
        chat_template: what the messages among them were written with; None without messages.
    """

    def __init__(
        self, sides: Sequence[TokenizedSide], report: SolutionReport, chat_template: Any = None
    ) -> None:
        self.sides, self.report, self.chat_template = list(sides), report, chat_template

    def __len__(self) -> int:
        return len(self.sides)

    def __getitem__(self, index: int) -> tuple[int, TokenizedSide]:
        index = range(len(self.sides))[index]  # resolves negative indices, refuses others
        return index, self.sides[index]


def prepare_solutions(
    source: Any,
    tokenizer: Any,
    options: TokenizeOptions | None = None,
    *,
    split: str = "train",
    columns: Columns | None = None,
    vocab_size: int | None = None,
    on_bad_row: Literal["error", "skip"] = "error",
    empty: Literal["error", "skip"] = "error",
    skipped_file: str | os.PathLike[str] | None = None,
    quiet: bool = False,
) -> SolutionDataset:
    """Read, check and tokenise solutions.

    Args:
        source: anything `load_rows` takes: a path, a `datasets.Dataset`, a list of dicts.
        tokenizer: a fast transformers tokenizer.
        options: see `TokenizeOptions`.
        split: which split of a dataset with several.
        columns: field → the column that holds it; a column → None leaves it out.
        vocab_size: rows of the model's embedding; ids beyond it are refused.
        on_bad_row, empty: which bad rows are left out, see `LeftOut`.
        skipped_file: JSON Lines file for skipped and cut rows.
        quiet: do not say what was skipped or cut, as the report does.

    Raises:
        RowError: a bad row, unless the options say to skip it (`LeftOut`).
        PrefkitError: an unreadable source, a slow tokenizer, or no row left.
    """
    options = options or TokenizeOptions()
    left_out = LeftOut(on_bad_row=on_bad_row, too_long=options.too_long, empty=empty)
    renderer = Renderer(tokenizer, options)
    if skipped_file is not None:
        check_writable(Path(skipped_file).parent, "skipped_file")
    rows = load_rows(source, split=split)
    report = SolutionReport(rows=len(rows))
    sides: list[TokenizedSide] = []
    columns = {} if columns is None else columns
    check_columns(columns, SOLUTION_FIELDS)
    checked = iter_rows(rows)
    while chunk := list(islice(checked, CHUNK)):
        taken = read_solutions(chunk, renderer, report, vocab_size, left_out, columns)
        for solution, side in taken:
            sides.append(side)
            report.chats += is_chat(solution, renderer.options)
    if skipped_file is not None:
        write_incidents(skipped_file, report.incidents)
    if not sides:
        raise PrefkitError(f"{rows.source}: no usable row, {report.skipped.total()} were skipped.")
    if report.incidents and not quiet:
        logger.warning("%s", report.summary())
    return SolutionDataset(sides, report, template_used(renderer, report.chats))


def read_solutions(
    rows: Sequence[Row | RowError],
    renderer: Renderer,
    report: SolutionReport,
    vocab_size: int | None,
    left_out: LeftOut,
    columns: Columns,
) -> list[tuple[Solution, TokenizedSide]]:
    """Rows as text and as tokens, in order; what is left out or cut is in the report.

    Args:
        rows: a few rows, each a `RowError` where it could not be read.
        renderer: writes prompts and knows the tokenizer.
        report: is added to.
        vocab_size, columns: as in `prepare_solutions`.
        left_out: which bad rows are.

    Raises:
        RowError: a bad row that is not left out.
    """
    chunk = [row if isinstance(row, RowError) else read_solution(row, columns) for row in rows]
    taken: list[tuple[Solution, TokenizedSide]] = []
    for solution, found in zip(chunk, _tokenize(chunk, renderer, vocab_size), strict=True):
        if isinstance(found, RowError):
            report.skipped[left_out.reason(found)] += 1
            report.incidents.append(Incident.of(found))
        else:
            assert isinstance(solution, Solution)
            taken.append((solution, found))
            _count(solution, found, report)
    return taken


def _tokenize(
    chunk: Sequence[Solution | RowError], renderer: Renderer, vocab_size: int | None
) -> list[TokenizedSide | RowError]:
    """A bad row becomes, or stays, its RowError."""
    texts = [
        s if isinstance(s, RowError) else try_write(s, {"response": s.response}, renderer)
        for s in chunk
    ]
    sound = [one for one in texts if isinstance(one, Texts)]
    responses = [one.sides["response"] for one in sound]
    encoded = iter(encode([one.front for one in sound], responses, renderer))
    results: list[TokenizedSide | RowError] = []
    for solution, written in zip(chunk, texts, strict=True):
        if isinstance(written, RowError):
            results.append(written)
            continue
        assert isinstance(solution, Solution)
        response = written.sides["response"]
        try:
            results.append(
                finish_side(solution, "response", response, next(encoded), renderer, vocab_size)
            )
        except RowError as error:
            results.append(error)
    return results


def _count(solution: Solution, side: TokenizedSide, report: SolutionReport) -> None:
    report.used += 1
    report.tokens += len(side.ids)
    report.scored += int(side.scored.sum())
    report.longest = max(report.longest, len(side.ids))
    if solution.append_eos and not side.eos:
        report.truncated += 1
        problem = f"cut to {len(side.ids)} tokens"
        report.incidents.append(
            Incident(solution.source, solution.row, "response", problem, "truncated")
        )
