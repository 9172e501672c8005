"""Pairs and two models → pairs with contrastive scores (arXiv 2411.19943).

    s_t = softmax((1 + b)·z_p − b·z_n)[y_t],   weight of a rejected token = 1 − s_t

with z the logits of the model tuned on right (p) and on wrong (n) solutions. A low s_t marks a
critical token. Scores come straight from hidden states: no tokens × vocabulary matrix is held.
"""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prefkit.critical_tokens.fields import ScoreFields
from prefkit.critical_tokens.models import TwoModels, load_two, look_at_two
from prefkit.critical_tokens.rows import Scorable, ScorableReader
from prefkit.critical_tokens.work_file import WorkFile, identity_of
from prefkit.critical_tokens.writing import Task, with_scores
from prefkit.data.batch.collators import SolutionCollator
from prefkit.data.report import Incident
from prefkit.data.sources.files import RawRow, load_rows
from prefkit.data.text.render import Renderer
from prefkit.errors import ConfigError, PrefkitError, RowError
from prefkit.files.progress import Progress
from prefkit.train.rows.run_rows import tokenize_options


@dataclass(frozen=True)
class Scored:
    """What `score_pairs` gives.

    Attributes:
        rows: the usable rows with their new fields, in order.
        total: rows of the source.
        skipped: reason → rows left out.
        incidents: the same, one by one.
        scores: s_t of all scored tokens of the rejected responses, float32.
    """

    rows: list[RawRow]
    total: int
    skipped: Counter[str]
    incidents: list[Incident]
    scores: np.ndarray

    def summary(self) -> str:
        """Two or three lines for people."""
        weights = 1 - self.scores
        lines = [
            f"{len(self.rows)} of {self.total} pairs scored, {len(weights)} tokens of rejected "
            "responses",
            f"weights 1 - s: mean {weights.mean():.3f}, {(weights > 0.5).mean():.1%} above 0.5",
        ]
        if self.skipped:
            reasons = ", ".join(f"{reason} ({n})" for reason, n in self.skipped.most_common())
            lines.append(f"{self.skipped.total()} skipped: {reasons}")
        return "\n".join(lines)


def score_pairs(
    source: Any,
    positive: Any,
    negative: Any,
    options: ScoreFields | None = None,
    *,
    tokenizer: Any = None,
    work_file: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> Scored:
    """Scores the tokens of pairs by two models.

    Args:
        source: rows as `prefkit.data.load_rows` takes them: a path, a dataset, a list of dicts.
        positive, negative: two folders of models or peft adapters, two Hub names, or two loaded
            causal language models (then with `tokenizer`).
        options: see `ScoreFields`.
        tokenizer: the models' own; None = the positive model's folder's.
        work_file: keeps scores while they come; given again, the run goes on from it.
        progress: show a bar with the time left on standard error.

    Returns:
        Rows with `rejected_weights` {"ids", "weights"} = 1 − s_t, or `prob_result`, as asked for.

    Raises:
        RowError: a row that cannot be scored (see `ScorableReader.read`).
        ModelError: models that cannot be loaded or fused, or do not share their tokens.
        ConfigError: options that do not go together.
        PrefkitError: an unreadable source, or no row left.
    """
    options = options or ScoreFields()
    rows = load_rows(source, split=options.split)
    common = look_at_two(positive, negative)  # rows are checked before any weight is loaded
    tokenizer = tokenizer or common.tokenizer
    if tokenizer is None:
        raise ConfigError("tokenizer is missing: loaded models come without one.")
    renderer = Renderer(tokenizer, tokenize_options(options, common))
    found = ScorableReader(renderer, options, common.vocab_size).read(rows)
    if not found.rows:
        first = f" The first: {found.incidents[0].problem}." if found.incidents else ""
        raise PrefkitError(f"{found.source}: no row can be scored.{first}")
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    models = load_two(positive, negative, options.dtype)
    kept = _Keeper(found.tasks, work_file, models, options)
    _score_tasks(found.tasks, kept, models, options, 0 if pad is None else pad, progress)
    return _result(found, kept.scores, options)


class _Keeper:
    """Scores in memory and, where a file is named, on disk."""

    def __init__(
        self, tasks: Sequence[Task], path: Any, models: TwoModels, options: ScoreFields
    ) -> None:
        self._file = None
        self.scores: dict[int, np.ndarray] = {}
        if path is not None:
            identity = identity_of(tasks, models.fingerprint(), options.beta)
            self._file = WorkFile(Path(path), identity)
            self.scores = dict(self._file.found)

    def add(self, scores: dict[int, np.ndarray]) -> None:
        self.scores |= scores
        if self._file is not None:
            self._file.add(scores)


def _score_tasks(
    tasks: Sequence[Task],
    kept: _Keeper,
    models: TwoModels,
    options: ScoreFields,
    pad: int,
    progress: bool,
) -> None:
    """Batches of like length, the longest first: what does not fit memory shows at once."""
    lengths = [len(task.side.ids) for task in tasks]
    layout = models.layout(max(lengths))
    collator = SolutionCollator(pad, options.pad_to_multiple_of, layout)
    order = sorted(range(len(tasks)), key=lambda i: -lengths[i])
    left = [i for i in order if i not in kept.scores]
    done = sum(lengths) - sum(lengths[i] for i in left)
    with Progress(sum(lengths), "Scoring", " tokens", done=done, shown=progress) as bar:
        for start in range(0, len(left), options.batch_size):
            some = left[start : start + options.batch_size]
            batch = collator([tasks[i].side for i in some])
            scores = models.scores(batch, options.beta, options.memory_budget).float().numpy()
            ends = np.cumsum([int(tasks[i].side.scored.sum()) for i in some])
            kept.add(dict(zip(some, np.split(scores, ends[:-1]), strict=True)))
            bar.add(sum(lengths[i] for i in some))


def _result(found: Scorable, scores: dict[int, np.ndarray], options: ScoreFields) -> Scored:
    by_row: list[list[int]] = [[] for _ in found.rows]
    for i, task in enumerate(found.tasks):
        by_row[task.row].append(i)
    rows, rejected = [], []
    for index, row, own in zip(found.indices, found.rows, by_row, strict=True):
        tasks = [found.tasks[i] for i in own]
        s = tasks[0].spread(scores[own[0]])[tasks[0].in_response]  # the rejected response is first
        if (s == 1).all():
            problem = "has no critical token: every score is 1, so no token would have a weight"
            error = RowError(found.source, index, "rejected", problem, "")
            found.leave_out(error, "rejected")
            continue
        rejected.append(s)
        rows.append(with_scores(row, tasks, [scores[i] for i in own], options.format))
    if not rows:
        raise PrefkitError(f"{found.source}: no rejected response has a critical token.")
    return Scored(rows, found.total, found.skipped, found.incidents, np.concatenate(rejected))
