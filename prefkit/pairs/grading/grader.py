"""Is a solution's answer right? Asked in worker processes, each question under a hard time limit.

A model writes whatever it likes, and comparing two formulas can take for ever, exhaust the memory
or crash an interpreter. So the comparison runs in processes of its own (library `pebble`): one
that takes too long is killed and replaced, and its answer stays undecided. The workers import the
grading function and nothing of torch.
"""

import contextlib
import importlib.util
import multiprocessing
import re
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import TimeoutError as FutureTimeout
from types import TracebackType
from typing import Any, Self

from prefkit.data.text.thoughts import parted
from prefkit.errors import ConfigError
from prefkit.options import import_path
from prefkit.pairs.grading.find.answers import check_rule, find
from prefkit.pairs.grading.find.found import Found
from prefkit.pairs.grading.verdicts import Grade, verdict_on

DEFAULT_FUNCTION = "prefkit.pairs.grading.compare.equality:equal"
MAX_ANSWER = 10_000  # characters; what is longer is no answer
MEMORY = 2 << 30  # bytes of address space that a worker may take beyond what it starts with

_PLAIN_INTEGER = re.compile(r"-?(?:0|[1-9]\d{0,17})")


class Grader:
    """Grades solutions, also from several threads at once.

    Args:
        workers: processes; they start with the first answer that needs one.
        seconds: for one answer, all included; then its process is killed.
        answer: how the answer is found, see `answers.final_answer`.
        function: "module:name" of a function (answer: str, gold: str) -> bool.

    Raises:
        ConfigError: an argument out of range, a function that cannot be imported or called, or
            pebble or math-verify not installed.

    A script that makes a Grader needs the usual `if __name__ == "__main__":`, because the workers
    are started afresh ("spawn") and import it.
    """

    def __init__(
        self,
        workers: int = 2,
        seconds: float = 2.0,
        answer: str = "auto",
        function: str = DEFAULT_FUNCTION,
    ) -> None:
        if workers < 1:
            raise ConfigError(f"grader workers is {workers}; at least 1 is needed.")
        if not seconds > 0:
            raise ConfigError(f"grader seconds is {seconds}; it must be above 0.")
        check_rule(answer)
        load_function(function)  # a mistake shows here, not after an hour of sampling
        self.seconds, self.rule, self.function = seconds, answer, function
        self._workers, self._lock, self._closed = workers, threading.Lock(), False
        self._pool: Any = None  # a pebble.ProcessPool

    def grade(self, solution: str, gold: str) -> Grade:
        """The verdict on one solution; see `grade_many`."""
        return self.grade_many([(solution, gold)])[0]

    def grade_many(self, items: Sequence[tuple[str, str]]) -> list[Grade]:
        r"""The verdicts on (solution, right answer) pairs, in their order.

        A right answer that is itself a solution ("… #### 72", "… \boxed{72}") is read as one.
        Nothing a solution holds raises an error: time-outs, crashes and exceptions of the grading
        function come back as grades that are not `decided`.
        """
        golds = [_gold(gold) for _, gold in items]
        waiting: list[tuple[int, str | None, Any]] = []
        grades: list[Grade | None] = [None] * len(items)
        for index, (solution, _) in enumerate(items):
            task = self._at_once(solution, golds[index])
            if isinstance(task, Grade):
                grades[index] = task
            else:
                answer = task.answer if isinstance(task, Found) else None
                waiting.append((index, answer, self._schedule(task, golds[index])))
        for index, answer, future in waiting:
            grades[index] = _result(future, answer, self.seconds)
        return [grade for grade in grades if grade is not None]

    def try_out(self, gold: str) -> None:
        """Compares a right answer with itself, before anything is sampled.

        Raises:
            ConfigError: the grading function raises, takes other arguments, or gives no bool.
        """
        if self.function == DEFAULT_FUNCTION:
            return
        grade = _result(self._schedule(Found(gold, "boxed"), gold), gold, self.seconds)
        if not grade.decided:
            raise ConfigError(
                f"grader {self.function} fails on the right answer {gold[:80]!r} itself: "
                f"{grade.note}. It must take (answer, right answer) and give True or False."
            )

    def close(self) -> None:
        """Ends the workers; answers still under way are given up. May be called twice."""
        with self._lock:
            pool, self._pool, self._closed = self._pool, None, True
        if pool is not None:
            pool.stop()
            pool.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _at_once(self, solution: str, gold: str) -> Grade | Found | str:
        """The grade, where no worker is needed; else what the worker gets: an answer, or the text
        in which the user's pattern (which may take for ever) finds one."""
        text, is_thinking = parted(solution)
        if is_thinking:
            return Grade(False, None, "thought")
        if self.rule.startswith("regex:"):
            return text
        found = find(text, self.rule)
        if found.answer is None:
            return Grade(False, None, "none")
        if len(found.answer) > MAX_ANSWER:
            note = f"{len(found.answer)} characters"
            return Grade(False, found.answer[:100], "refused", note)
        is_sure = not (found.again or found.doubt or found.rivals)
        if self.function == DEFAULT_FUNCTION and is_sure:
            if found.answer == gold:
                return Grade(True, gold, "exact")
            if _PLAIN_INTEGER.fullmatch(found.answer) and _PLAIN_INTEGER.fullmatch(gold):
                is_same = int(found.answer) == int(gold)
                if is_same or not found.others:
                    return Grade(is_same, found.answer, "integer")
        return found

    def _schedule(self, task: Found | str, gold: str) -> Any:
        with self._lock:
            if self._closed:
                raise RuntimeError("the Grader is closed")
            if self._pool is None:
                from pebble import ProcessPool

                self._pool = ProcessPool(
                    max_workers=self._workers,
                    initializer=_prepare,
                    initargs=(self.function,),
                    context=multiprocessing.get_context("spawn"),
                )
            arguments = (self.function, self.rule, task, gold)
            return self._pool.schedule(_work, args=arguments, timeout=self.seconds)


def load_function(path: str) -> Callable[[str, str], bool]:
    """The grading function of a path "module:name".

    Raises:
        ConfigError: no such module or name, an import that fails, nothing to call.
    """
    found = import_path.load_function("grader", path)
    for needed in ("pebble", *(["math_verify"] if path == DEFAULT_FUNCTION else [])):
        if importlib.util.find_spec(needed) is None:
            raise ConfigError(f"Grading needs {needed}: pip install 'prefkit[build]'.")
    return found


def _gold(gold: str) -> str:
    """The right answer; where that is a whole solution, the answer that it states."""
    gold = gold.strip()
    found = find(gold)
    is_solution = found.by in ("hash", "tag", "boxed", "stated") or (
        found.by == "formula" and gold.startswith(("$", "\\(", "\\["))
    )
    return (found.answer if is_solution else None) or gold


def _result(future: Any, answer: str | None, seconds: float) -> Grade:
    try:
        return Grade(*future.result())
    except (TimeoutError, FutureTimeout):
        return Grade(False, answer, "timeout", f"more than {seconds:g} s")
    except Exception as error:  # of the function, or the end of its process
        return Grade(False, answer, "error", f"{type(error).__name__}: {error}"[:200])


# ------------------------------------------------------------------------------- in the workers


def _prepare(path: str) -> None:
    """Imports before the first answer's time starts; then bounds the memory."""
    function = load_function(path)
    if path == DEFAULT_FUNCTION:
        function("\\sqrt{2}", "2^{1/2}")  # loads the grammar
    with contextlib.suppress(ImportError, OSError, ValueError):  # no such limit on this system
        import resource

        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))


def _work(path: str, rule: str, task: Found | str, gold: str) -> tuple[bool, str | None, str]:
    """(right, answer, how) of an answer, or of a text in which it has to be found."""
    found = task if isinstance(task, Found) else find(task, rule)
    if found.answer is None:
        return False, None, "none"
    if len(found.answer) > MAX_ANSWER:
        return False, found.answer[:100], "refused"
    # Deep recursion ends in an exception, never in a crashed stack.
    sys.setrecursionlimit(3000)
    if path == DEFAULT_FUNCTION:
        is_right, how = verdict_on(found, gold)
        return is_right, found.answer, how
    judge = load_function(path)
    verdicts = [judge(answer, gold) for answer in (found.answer, *found.rivals)]
    for verdict in verdicts:
        if not isinstance(verdict, bool):
            raise TypeError(f"it gave {verdict!r}, not True or False")
    if found.doubt or len(set(verdicts)) > 1:
        return False, found.answer, found.doubt or "unclear"
    return verdicts[0], found.answer, "function"
