"""Runs every question's pipeline on an engine, so that a kill loses nothing and repeats nothing.

Two journals make it so: `completions.jsonl` keeps what was sampled, `questions.jsonl` what became
of each finished question. A build that is taken up again runs the pipelines again on what is kept
and asks only for the rest. A completion is kept for one request, text and settings included: where
a pipeline now asks for something else (an interpreter printed another line, a comparison ran out of
time then and not now), it is sampled anew, never glued to another text.
"""

import contextlib
import hashlib
import json
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prefkit.files.journal import Journal, read_lines
from prefkit.files.progress import Progress, say
from prefkit.pairs.asking import Asking, together
from prefkit.pairs.engines.base import Completion, Engine, Request, unread
from prefkit.pairs.pipelines.outcome import Outcome
from prefkit.pairs.questions import Question

COMPLETIONS, QUESTIONS = "completions.jsonl", "questions.jsonl"
Start = Callable[[Question], Asking[Outcome]]
_PATIENCE = 10.0  # seconds that lanes get to end after an error or Ctrl-C


class Driver:
    """One build's run over its questions.

    Args:
        engines: by role: who answers requests of that role.
        folder: where the journals lie.
        start: makes a question's pipeline.
        noun: what the rows are ("pairs"), for the progress bar.
    """

    def __init__(
        self, engines: Mapping[str, Engine], folder: Path, start: Start, noun: str = "pairs"
    ) -> None:
        self.engines, self.folder, self.start, self.noun = engines, folder, start, noun
        self._kept: dict[tuple[str, str], Completion] = {}
        self._stop = threading.Event()

    def run(self, questions: Sequence[Question]) -> None:
        """Finishes every question that is not finished yet.

        Raises:
            PrefkitError: an engine gave up; what is done stays done.
        """
        pairs = {line["id"]: len(line["rows"]) for line in read_lines(self.folder / QUESTIONS)}
        finished = set(pairs)
        engine = self.engines["model"]
        # Windows by index, not by what is left: the batches after a crash are those before it.
        windows = [
            list(questions[at : at + engine.window])
            for at in range(0, len(questions), engine.window)
        ]
        todo = [window for window in windows if any(q.id not in finished for q in window)]
        wanted = {question.id for window in todo for question in window}
        self._kept = dict(_kept(self.folder / COMPLETIONS, wanted))
        done = [pairs[question.id] for question in questions if question.id in finished]
        if done:
            say(f"{len(done):,} of {len(questions):,} questions are done already.")
        self._completions = Journal(self.folder / COMPLETIONS)
        self._questions = Journal(self.folder / QUESTIONS)
        try:
            bar = Progress(
                len(questions),
                "Asking",
                " questions",
                done=len(done),
                tallies={self.noun: sum(done)},
            )
            with bar as self._progress:
                self._run_lanes(todo, finished, engine.lanes)
        finally:
            self._completions.close()
            self._questions.close()

    def _run_lanes(self, todo: list[list[Question]], finished: set[str], lanes: int) -> None:
        if lanes == 1:
            for window in todo:
                self._run_window(window, finished)
            return
        left: queue.SimpleQueue[list[Question]] = queue.SimpleQueue()
        for window in todo:
            left.put(window)
        ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

        def lane() -> None:
            try:
                with contextlib.suppress(queue.Empty):
                    while not self._stop.is_set():
                        self._run_window(left.get_nowait(), finished)
                ended.put(None)
            except BaseException as error:  # told to the main thread, which raises it
                ended.put(error)

        # Daemons: an interrupted command ends at once; what they wait for is asked for again.
        threads = [threading.Thread(target=lane, daemon=True) for _ in range(min(lanes, len(todo)))]
        for thread in threads:
            thread.start()
        try:
            for _ in threads:
                if (error := ended.get()) is not None:
                    raise error
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(_PATIENCE / len(threads))

    def _run_window(self, window: list[Question], finished: set[str]) -> None:
        """The pipelines of a window's questions, stage by stage, their requests in one stream."""
        pipelines = together([self._finishing(question, finished) for question in window])
        completions: list[Completion] | None = None
        while not self._stop.is_set():
            try:
                requests = next(pipelines) if completions is None else pipelines.send(completions)
            except StopIteration:
                return
            found = self._answers(requests)
            completions = [found[request.key] for request in requests]

    def _finishing(self, question: Question, finished: set[str]) -> Asking[None]:
        """A question's pipeline, its outcome kept the moment it ends."""
        outcome = yield from self.start(question)
        if question.id not in finished:
            self._questions.append([outcome.as_json()])
            self._progress.add(1, **{self.noun: len(outcome.rows)})

    def _answers(self, requests: Sequence[Request]) -> dict[str, Completion]:
        """Completions of all requests: those kept, and those sampled and kept now.

        A request that its model cannot read (a judge's, a prefix that fills the context) comes
        back unfinished and empty; questions themselves were checked before anything was sampled.
        """
        found: dict[str, Completion] = {}
        for role, engine in self.engines.items():
            own = [request for request in requests if request.role == role]
            readable = [request for request in own if engine.fits(request)]
            for request in own:
                if not engine.fits(request):
                    found[request.key] = unread(request)
            for batch in engine.batches(readable) if readable else ():
                found.update(self._batch(engine, batch))
        return found

    def _batch(self, engine: Engine, batch: Sequence[Request]) -> dict[str, Completion]:
        marks = {request.key: mark_of(request) for request in batch}
        found = {
            key: self._kept.pop((key, mark))
            for key, mark in marks.items()
            if (key, mark) in self._kept
        }
        missing = [request for request in batch if request.key not in found]
        if not missing:
            return found
        sampled = engine.sample(batch if engine.fixed_batches else missing)
        for group in _grouped(sampled, whole=engine.fixed_batches):
            new = [completion for completion in group if completion.key not in found]
            self._completions.append(
                [{**vars(completion), "request": marks[completion.key]} for completion in new]
            )
            self._progress.add(tokens=sum(completion.tokens for completion in new))
            found.update({completion.key: completion for completion in new})
        return found


def mark_of(request: Request) -> str:
    """16 hex digits that stand for all of a request: a completion is good for no other."""
    return hashlib.sha256(json.dumps(asdict(request), sort_keys=True).encode()).hexdigest()[:16]


def _kept(path: Path, wanted: set[str]) -> Iterator[tuple[tuple[str, str], Completion]]:
    """Completions of these questions, by key and request."""
    for line in read_lines(path):
        if line["key"].partition("/")[0] in wanted:
            fields: dict[str, Any] = {k: v for k, v in line.items() if k != "request"}
            yield (line["key"], line["request"]), Completion(**fields)


def _grouped(completions: Iterator[Completion], whole: bool) -> Iterator[list[Completion]]:
    """One at a time where they come one by one (a server's), else the whole batch."""
    if whole:
        yield list(completions)
    else:
        for completion in completions:
            yield [completion]
