"""Rows of pairs → the responses to score.

A row is refused before any model runs where its weights could not be read back: made-up scores are
written into it, and it is read and tokenised as in training. What training binds the weights to is
so known to be what they were computed for.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from prefkit.critical_tokens.fields import ScoreFields
from prefkit.critical_tokens.writing import Task, with_scores
from prefkit.data.formats.detect import ReadOptions, detect_format, read_row
from prefkit.data.formats.fields.row import Row
from prefkit.data.formats.other_trainers import known, renamed
from prefkit.data.formats.several import is_several
from prefkit.data.pair import Pair, TokenizedPair, TokenizedSide
from prefkit.data.report import Incident
from prefkit.data.sources.files import RawRow, Rows
from prefkit.data.text.render import Renderer
from prefkit.data.tokens.encode import Encoded
from prefkit.data.tokens.sequence import Texts
from prefkit.data.tokens.tokenize import encode_pairs, tokenize_pairs, write_pairs
from prefkit.errors import RowError

CHUNK = 256  # rows a call of the tokenizer
WEIGHTS = (
    *("chosen_weights", "rejected_weights", "chosen_spans", "rejected_spans"),
    *("prob_result", "chosen_scores"),
)
_MADE_UP = 0.25  # a score; 1 − it is exact, and no other weight


@dataclass
class Scorable:
    """What can be scored of a source, and what cannot.

    Attributes:
        source: the name that messages use.
        total: rows of the source.
        rows: the usable rows, as they were read.
        indices: their 0-based indices in the source.
        tasks: their responses to score, row by row.
        skipped: reason → rows left out.
        incidents: the same, one by one.
    """

    source: str
    total: int
    rows: list[RawRow] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    tasks: list[Task] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    incidents: list[Incident] = field(default_factory=list)

    def leave_out(self, error: RowError, reason: str) -> None:
        """Counts and lists a row that is not used."""
        self.skipped[reason] += 1
        self.incidents.append(Incident.of(error))


class ScorableReader:
    """Reads, checks and tokenises rows.

    Args:
        renderer: with the options of the texts and the models' tokenizer.
        options: see `ScoreFields`.
        vocab_size: tokens that both models know.
    """

    def __init__(self, renderer: Renderer, options: ScoreFields, vocab_size: int) -> None:
        self.renderer, self.options, self.vocab_size = renderer, options, vocab_size
        self.reading = ReadOptions.of(options, level=options.level, format=options.row_format)

    def read(self, rows: Rows) -> Scorable:
        """What of the rows can be scored.

        Raises:
            RowError: a row that training could not read, that has weights already, that is too
                long, or that holds several pairs; unless the options say to skip it.
        """
        found = Scorable(rows.source, len(rows))
        items = list(rows)
        left_out = self.reading.left_out(self.options.too_long)
        for start in range(0, len(items), CHUNK):
            chunk = items[start : start + CHUNK]
            read = self._chunk(rows.source, start, chunk)
            for i, (raw, tasks) in enumerate(zip(chunk, read, strict=True)):
                if isinstance(tasks, RowError):
                    found.leave_out(tasks, left_out.reason(tasks))
                else:
                    assert isinstance(raw, dict)
                    found.tasks += [replace(task, row=len(found.rows)) for task in tasks]
                    found.rows.append(raw)
                    found.indices.append(start + i)
        return found

    def _chunk(
        self, source: str, start: int, chunk: Sequence[RawRow | RowError]
    ) -> list[list[Task] | RowError]:
        """The responses to score of each row, or why there are none."""
        rows = [
            raw if isinstance(raw, RowError) else Row(source, start + i, raw)
            for i, raw in enumerate(chunk)
        ]
        pairs = [row if isinstance(row, RowError) else self._pair(row) for row in rows]
        results: list[Any] = self._tokenized(pairs)
        for i, (pair, tokenized) in enumerate(zip(pairs, results, strict=True)):
            if isinstance(pair, Pair) and isinstance(tokenized, TokenizedPair):
                results[i] = self._tasks(pair, tokenized)
        probes = [
            tasks if isinstance(tasks, RowError) else self._probe(row, tasks)
            for row, tasks in zip(rows, results, strict=True)
        ]
        for i, probe in enumerate(self._tokenized(probes)):
            if isinstance(probe, RowError):
                results[i] = probe
            elif not _reads_back(probe, results[i]):
                problem = "would be read for other tokens than those that are scored"
                results[i] = RowError(
                    source, start + i, "rejected_weights", problem, "Report this as a bug."
                )
        return results

    def _tokenized(self, pairs: Sequence[Pair | RowError]) -> list[TokenizedPair | RowError]:
        sound = [pair for pair in pairs if isinstance(pair, Pair)]
        tokenized = iter(tokenize_pairs(sound, self.renderer, self.vocab_size))
        return [pair if isinstance(pair, RowError) else next(tokenized) for pair in pairs]

    def _pair(self, row: Row, fresh: bool = True) -> Pair | RowError:
        """The row's one pair; a `fresh` row must be one that can carry scores."""
        try:
            if fresh:
                self._refuse(row)
            return next(iter(read_row(row, self.reading)))
        except RowError as error:
            return error

    def _refuse(self, row: Row) -> None:
        for name in WEIGHTS:
            if name in row:
                problem = "is there already: the row was scored or weighted before"
                raise row.error(name, problem, "Remove the field to score the row anew.")
        given = self.reading.format
        if (detect_format(row) if given == "auto" else given) == "tdpo":
            problem = "make several pairs of one row, whose weights cannot be kept in it"
            remedy = "Write each pair as a row with prompt, chosen and rejected."
            raise row.error("pairs", problem, remedy)
        if is_several(known(renamed(row, self.reading.columns)).get("rejected")):
            problem = "is a list of responses, which make several pairs of one row"
            raise row.error("rejected", problem, "Write each as a row of its own, as one text.")
        if self.options.format == "prob_result":
            for name in ("prefix", "initial_reason_steps", "append_eos"):
                if name in row:
                    problem = "cannot be written to a file of cDPO's released code"
                    raise row.error(name, problem, "Use --format weights.")

    def _probe(self, row: Any, tasks: Sequence[Task]) -> Pair | RowError:
        """The row as training will read it, with made-up scores."""
        scores = [np.full(int(task.side.scored.sum()), _MADE_UP) for task in tasks]
        written = with_scores(row.data, tasks, scores, self.options.format)
        return self._pair(Row(row.source, row.index, written), fresh=False)

    def _tasks(self, pair: Pair, tokenized: TokenizedPair) -> list[Task]:
        texts = write_pairs([pair], self.renderer)[0]
        assert isinstance(texts, Texts)  # the pair was tokenised before
        encoded = encode_pairs([texts], self.renderer)[0]
        both = self.options.sides == "both" or self.options.format == "prob_result"
        tasks = [
            self._task("rejected", encoded[1], tokenized.rejected),
            self._task("chosen", encoded[0], tokenized.chosen),
        ]
        return tasks if both else tasks[:1]

    def _task(self, name: str, encoded: Encoded, side: TokenizedSide) -> Task:
        scored = encoded.in_response.copy()
        if self.options.format == "prob_result":
            scored[:] = True
        scored[0] = False  # nothing predicts it
        if side.eos and len(side.ids) == len(encoded.ids):
            scored[-1] = False  # an end token in the text
        whole = TokenizedSide(
            ids=encoded.ids.astype(np.int32),
            scored=scored,
            weights=np.ones(len(scored), np.float32),
            eos=False,
        )
        text = encoded.text[encoded.response :]
        return Task(0, name, whole, encoded.in_response, text)


def _reads_back(probe: TokenizedPair, tasks: Sequence[Task]) -> bool:
    """Whether training gives the made-up weights to the tokens that are scored, and 1 else."""
    task = tasks[0]
    count = len(task.side.ids)
    want = np.ones(len(probe.rejected.ids), np.float32)
    want[:count][task.side.scored & task.in_response] = 1 - _MADE_UP
    want[~probe.rejected.scored] = 0  # prompt, and tool output
    same = np.array_equal(probe.rejected.ids[:count], task.side.ids)
    return same and np.array_equal(probe.rejected.weights, want)
