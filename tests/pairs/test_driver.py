"""The driver: several lanes, faults in one of them, and completions that belong to other texts."""

import re
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from prefkit.errors import PrefkitError
from prefkit.files.journal import read_lines
from prefkit.pairs.asking import Asking
from prefkit.pairs.engines.base import Completion, Request
from prefkit.pairs.pipelines.outcome import Outcome
from prefkit.pairs.questions import Question
from prefkit.pairs.run.driver import COMPLETIONS, Driver
from tests.pairs.build_cases import question


class Echo:
    """An engine of several lanes that writes a request's text backwards, after a short while."""

    name, window, fixed_batches = "echo", 1, False

    def __init__(self, lanes: int = 8, poison: str = "") -> None:
        self.lanes, self.poison = lanes, poison
        self.asked: list[str] = []
        self.at_once = self.most = 0
        self._lock = threading.Lock()

    def fits(self, request: Request) -> bool:
        return len(request.text) < 1000

    def batches(self, requests: Sequence[Request]) -> list[list[Request]]:
        return [list(requests)]

    def sample(self, batch: Sequence[Request]) -> Iterator[Completion]:
        with self._lock:
            self.at_once += 1
            self.most = max(self.most, self.at_once)
        try:
            for request in batch:
                time.sleep(0.002)
                if self.poison and self.poison in request.text:
                    raise PrefkitError("the engine gave up")
                with self._lock:
                    self.asked.append(request.key)
                text = request.text[::-1]
                yield Completion(key=request.key, text=text, finish="end", tokens=1)
        finally:
            with self._lock:
                self.at_once -= 1

    def close(self) -> None:
        pass


def request(name: str, text: str) -> Request:
    return Request(key=name, text=text, temperature=1.0, max_tokens=5, seed=1)


def twice(one: Question) -> Asking[Outcome]:
    """Two rounds: two texts, then one made of their completions."""
    first = yield [request(f"{one.id}/a/{i}", f"{one.text} {i}") for i in range(2)]
    second = yield [request(f"{one.id}/b", first[0].text + first[1].text)]
    return Outcome(one.id, rows=[{"id": one.id, "text": second[0].text}])


def questions(count: int) -> list[Question]:
    return [question(f"question {i}", name=f"q{i}") for i in range(count)]


def outcomes(folder: Path) -> dict[str, str]:
    lines = list(read_lines(folder / "questions.jsonl"))
    assert len({line["id"] for line in lines}) == len(lines)
    return {line["id"]: line["rows"][0]["text"] for line in lines}


def test_lanes_run_beside_each_other_and_do_everything_once(tmp_path: Path) -> None:
    engine = Echo()
    Driver({"model": engine}, tmp_path, twice).run(questions(60))
    found = outcomes(tmp_path)
    assert found == {f"q{i}": f"question {i} 1question {i} 0" for i in range(60)}
    assert engine.most > 1
    assert len(engine.asked) == len(set(engine.asked)) == 180


def test_an_engine_that_gives_up_ends_the_run_and_the_rest_is_done_later(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = Echo(poison="question 30")
    with pytest.raises(PrefkitError, match="gave up"):
        Driver({"model": engine}, tmp_path, twice).run(questions(60))
    after = len(engine.asked)
    time.sleep(0.1)
    assert len(engine.asked) == after  # no lane goes on behind the caller's back
    again = Echo()
    Driver({"model": again}, tmp_path, twice).run(questions(60))
    assert len(outcomes(tmp_path)) == 60
    told = capsys.readouterr().err
    assert re.search(r" 60/60 .*, 60 pairs, \d+ tokens", told)  # both runs' pairs
    keys = [line["key"] for line in read_lines(tmp_path / COMPLETIONS)]
    assert len(keys) == len(set(keys)) == 180


def test_a_completion_is_kept_for_its_own_text_only(tmp_path: Path) -> None:
    """A stage whose request comes out otherwise the second time is sampled anew."""

    def build(word: str, end: bool) -> None:
        def start(one: Question) -> Asking[Outcome]:
            found = yield [request(f"{one.id}/x", f"{one.text} {word}")]
            if not end:
                raise RuntimeError("killed")
            return Outcome(one.id, rows=[{"text": found[0].text}])

        Driver({"model": Echo(lanes=1)}, tmp_path, start).run(questions(1))

    with pytest.raises(RuntimeError, match="killed"):
        build("then", end=False)
    build("now", end=True)
    assert outcomes(tmp_path) == {"q0": "question 0 now"[::-1]}


def test_a_request_that_its_model_cannot_read_comes_back_empty(tmp_path: Path) -> None:
    def start(one: Question) -> Asking[Outcome]:
        found = yield [request(f"{one.id}/long", "x" * 2000), request(f"{one.id}/short", "ab")]
        rows = [{"text": f"{c.text}:{c.finish}:{c.tokens}"} for c in found]
        return Outcome(one.id, rows=[{"text": " ".join(row["text"] for row in rows)}])

    Driver({"model": Echo(lanes=1)}, tmp_path, start).run(questions(1))
    assert outcomes(tmp_path) == {"q0": ":length:0 ba:end:1"}
