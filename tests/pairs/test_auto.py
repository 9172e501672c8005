"""Who finds the first wrong step by default, how a judge is heard, what is shown of verdicts."""

import json
import re
import zlib
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from prefkit.cli.build import run as run_build
from prefkit.demo import arithmetic as world
from prefkit.errors import PrefkitError
from prefkit.pairs.engines.base import Request
from prefkit.pairs.grading.grader import Grader
from prefkit.pairs.localise.judge import CUT_OFF_THINKING
from prefkit.pairs.localise.verdict import Verdict
from prefkit.pairs.pipelines.dpo import dpo
from prefkit.pairs.pipelines.finding import Finder, announcement
from prefkit.pairs.pipelines.outcome import LOCALISED, REMOVED, Outcome, keep
from prefkit.pairs.pipelines.step_dpo import step_dpo
from prefkit.pairs.run.verdicts import SHOWN, Drawn, as_text, drawn, show
from tests.pairs.build_cases import drive, make_context, question
from tests.pairs.tiny_servers import answering

QUESTIONS = str(Path(__file__).parents[2] / "examples" / "tiny_model" / "questions")
WORDS = "Ann has 3 boxes of 4 pens. She gives 5 away. How many are left?"
BARE = "3*4=12\n12-6=6\n"
SPOKEN = "She has 3*4=12 pens.\nLeft are 12-6=6.\n"


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader(workers=1) as found:
        yield found


@pytest.mark.parametrize(
    ("text", "solution", "has_judge", "who"),
    [
        ("3*4-5=", BARE, False, "program: the steps of an expression can be followed"),
        ("3*4-5=", BARE, True, "program: the steps of an expression can be followed"),
        ("3*4-5=", SPOKEN, False, "rollouts: no judge is given"),
        ("3*4-5=", SPOKEN, True, "judge: a judge is given"),
        (WORDS, BARE, False, "rollouts: no judge is given"),  # it may calculate the wrong thing
        (WORDS, SPOKEN, True, "judge: a judge is given"),
    ],
)
def test_auto_is_decided_for_every_solution(
    grader: Grader, text: str, solution: str, has_judge: bool, who: str
) -> None:
    def write(request: Request) -> tuple[str, str]:
        if request.role == "judge":
            return "Final Decision:\nStep 1: correct; Step 2: incorrect", "end"
        if "/solution/" in request.key:
            return solution, "end"
        if "/locate/" in request.key:  # right from the steps before the second one
            return (
                "12-5=7\n" if request.text.endswith(solution.splitlines()[0] + "\n") else "0"
            ), "end"
        return "12-5=7\n", "end"

    finder = Finder("auto", "none", 3, has_judge)
    context = make_context("step-dpo", grader, finder=finder, samples=1, rectifications=1)
    outcome, asked = drive(step_dpo(question(text, "7"), context), write)
    assert [name for name in outcome.counts if name.startswith("wrong solutions read")] == [
        f"wrong solutions read by {who}"
    ]
    (record,) = [found for found in outcome.extra["verdicts"] if found["kind"] == LOCALISED]
    assert record["step"] == 1
    assert record["by"].startswith(who.partition(":")[0])
    (row,) = outcome.rows
    assert row["chosen"] == "12-5=7\n"
    sampled = sum("/locate/" in request.key for requests in asked for request in requests)
    assert sampled == {"program": 0, "judge": 1, "rollouts": 2 * 3}[who.partition(":")[0]]
    assert outcome.counts["rollouts sampled"] == (6 if who.startswith("rollouts") else 0)


def test_right_answers_are_read_by_who_can_and_else_by_nobody(grader: Grader) -> None:
    def write(request: Request) -> tuple[str, str]:
        if request.role == "judge":
            return ("", "length") if "9+33" in request.messages[0]["content"] else (
                "Step 1: incorrect", "end"
            )  # fmt: skip
        return ["2+40=43\n43-1=42", "it is 42", "so: 9+33=42", "41"][int(request.key[-1])], "end"

    def built(text: str, has_judge: bool) -> tuple[dict[str, int], dict[str, int], list[Any]]:
        finder = Finder("none", "auto", 1, has_judge)
        context = make_context("dpo", grader, finder=finder, samples=4, pairs_per_question=4)
        outcome, _ = drive(dpo(question(text), context), write)
        counts = {k: n for k, n in outcome.counts.items() if k.startswith("right solutions")}
        drops = {k: n for k, n in outcome.drops.items() if n and ("judge" in k or "right a" in k)}
        return counts, drops, outcome.extra.get("verdicts", [])

    nobody = "right solutions read by nobody: no judge is given"
    assert built("Add 2 and 40.", False) == ({nobody: 3}, {}, [])
    counts, drops, kept = built("2+41-1=", True)
    assert counts == {
        "right solutions read by program: the steps of an expression can be followed": 1,
        "right solutions read by judge: a judge is given": 2,
    }
    assert drops == {
        "solutions: right answer by a wrong step": 2,
        "solutions: right answer, and the judge gave no verdict": 1,
        f"judge answers: {CUT_OFF_THINKING}": 1,
    }
    assert [(found["kind"], found["step"]) for found in kept] == [(REMOVED, 0), (REMOVED, 0)]


def test_the_cost_is_said_before() -> None:
    options = make_context("step-dpo", None).options  # type: ignore[arg-type]
    asked = [question("1+2="), question(WORDS)]
    auto = announcement(Finder("auto", "auto", 16), options, asked)
    assert auto is not None
    assert "(1 of 2 questions are expressions), else rollouts, 16 continuations from" in auto
    judged = announcement(Finder("auto", "auto", 16, True), options, asked)
    assert judged is not None
    assert "else the judge, one request a wrong solution" in judged
    program = announcement(Finder("program", "program", 16), options, asked)
    assert program is not None
    assert "1 of 2 questions are no expressions" in program
    assert announcement(Finder("none", "auto", 16), options, asked) is None


# -- a judge behind a server -------------------------------------------------------------------


def solver(body: dict[str, Any]) -> tuple[int, Any]:
    """Goes on with "1+2-3=\\n1+2=3\\n" line by line; two of three seeds make a mistake."""
    if body["prompt"] == "0":  # asked before a build, whether seeds hold
        return 200, {"choices": [{"text": str(body["seed"]), "finish_reason": "stop"}]}
    asked, *done = body["prompt"].rstrip("\n").split("\n")
    first, *terms = re.findall(r"[+-]?\d+", asked)
    value = int(done[-1].partition("=")[2] if done else first)
    written, wrong = "", body["seed"] % 3 and body["seed"] % len(terms)
    for place, term in enumerate(terms[len(done) :], start=len(done)):
        result = value + int(term) + (place == wrong > 0)
        written += f"{value}{term}={result}\n"
        value = result
    return 200, {"choices": [{"text": written, "finish_reason": "stop"}]}


def reasoning_judge(body: dict[str, Any]) -> tuple[int, Any]:
    """A server that does nothing but chat, with a reasoning parser. Of three texts it thinks too
    long over one, writes its thought into the answer of another, and knows the truth of the tiny
    world."""
    if "messages" not in body:
        return 404, {"detail": "Not Found"}
    prompt = body["messages"][0]["content"]
    if "### Problem" not in prompt:  # is anybody there?
        return 200, {"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}]}
    problem = prompt.partition("### Problem\n")[2].partition("\n\n###")[0]
    steps = prompt.partition("steps\n")[2].partition("\n\n")[0].split("\n")
    lines = [step.partition(": ")[2] + "\n" for step in steps]
    first = world.check(world.parse_prompt(problem + "\n"), "".join(lines)).first_wrong
    words = ["incorrect" if place == first else "correct" for place in range(len(lines))]
    decided = "; ".join(f"Step {place + 1}: {word}" for place, word in enumerate(words))
    thought = "Step 1: incorrect? Final Decision: Step 1: incorrect"
    usage = {"completion_tokens": body["max_tokens"]}
    kind = zlib.crc32(prompt.encode()) % 3
    if kind == 0:
        message = {"content": None, "reasoning_content": thought}
        return 200, {"choices": [{"message": message, "finish_reason": "length"}], "usage": usage}
    said = f"Final Decision:\n{decided}"
    message = {"content": said, "reasoning_content": thought}
    if kind == 1:
        message = {"content": f"<think>{thought}</think>{said}"}
    return 200, {"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage}


def command(out: Path, url: str, judge: str, *flags: str) -> list[str]:
    given = f"--model m --server {url} --judge_server {judge} --localiser judge --out {out}"
    return ["step-dpo", QUESTIONS, *given.split(), "--rectifications", "6", *flags]


def test_a_judge_that_thinks_too_long_is_counted_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("openai")
    with answering(solver) as url, answering(reasoning_judge) as judge:
        flags = ("--judge_max_tokens", "300", "--max_questions", "24")
        run_build(command(tmp_path, url, judge, *flags))
    told = capsys.readouterr()
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    counts, drops = manifest["counts"], manifest["drops"]
    read = counts["wrong solutions read by judge: localiser judge"]
    lost = drops[f"judge answers: {CUT_OFF_THINKING}"]
    without = drops["mistakes: first wrong step not found"]
    assert read == counts["mistakes located"] + without
    assert 0 < without <= lost
    assert drops["rectifications: right answer, and the judge gave no verdict"] == lost - without
    assert f"{lost} answers of the judge were cut off by judge_max_tokens (300)" in told.out
    assert "--judge_max_tokens 600" in told.out
    assert told.err.count("raise judge_max_tokens") == 1
    # No thought is a verdict: the judge is right wherever it spoke.
    text = (tmp_path / "verdicts.txt").read_text()
    assert 0 < text.count("judge (localiser judge): the judge calls the step incorrect") <= SHOWN
    for line in (tmp_path / "questions.jsonl").read_text().splitlines():
        for found in json.loads(line)["extra"].get("verdicts", ()):
            problem = world.parse_prompt(found["question"])
            assert world.check(problem, "".join(found["steps"])).first_wrong == found["step"]
    (head,) = [line for line in told.out.splitlines() if "is called the first wrong" in line]
    assert head.startswith(f"{min(SHOWN, counts['mistakes located'])} of ")
    assert "Read them before you train" in told.out


def test_no_pair_for_want_of_tokens_says_so(tmp_path: Path) -> None:
    pytest.importorskip("openai")

    def answer(body: dict[str, Any]) -> tuple[int, Any]:
        if "messages" not in body:
            return solver(body)
        choice = {"message": {"content": None}, "finish_reason": "length"}
        return 200, {"choices": [choice]}

    wanted = pytest.raises(PrefkitError, match=r"thinking \(\d+\).*or raise judge_max_tokens\.$")
    with answering(answer) as url, wanted:
        run_build(command(tmp_path, url, url, "--max_questions", "2"))


# -- verdicts to look at -----------------------------------------------------------------------


def outcomes(count: int, kind: str = LOCALISED, step: str = "1+1=3\n") -> list[dict[str, Any]]:
    found = [
        {"kind": kind, "question": f"question {n}", "answer": "2", "steps": [step, "so 3"],
         "step": 0, "reason": "false", "by": "program (x)"}
        for n in range(count)
    ]  # fmt: skip
    return [{"extra": {"verdicts": [one]}} for one in found]


def test_ten_are_drawn_by_the_seed_in_the_order_of_the_questions() -> None:
    first, again, other = (drawn(outcomes(40), LOCALISED, seed) for seed in (0, 0, 1))
    assert first == again != other
    assert (len(first.records), first.of) == (SHOWN, 40)
    numbers = [int(found["question"].split()[1]) for found in first.records]
    assert numbers == sorted(numbers)
    assert drawn([*outcomes(3), {"extra": {}}], LOCALISED, 0).of == 3
    assert drawn(outcomes(3), REMOVED, 0).records == []


def test_a_narrow_terminal_and_wide_letters_and_codes_for_terminals(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from rich.cells import cell_len

    monkeypatch.setenv("COLUMNS", "40")
    stream = StringIO()
    show(drawn(outcomes(2, step="多い語" * 30 + "\x1b[2J 1+1=3\n"), LOCALISED, 0), stream)
    lines = stream.getvalue().splitlines()
    assert max(map(cell_len, lines)) <= 40
    assert "\x1b" not in stream.getvalue()
    assert "\\x1b[2J" in stream.getvalue().replace("\n", "").replace(" ", "")
    assert [line for line in lines if line.startswith("> 1 ")]
    show(Drawn(LOCALISED, [], 0), stream := StringIO())
    assert stream.getvalue() == ""


def test_the_file_has_both_kinds_whole() -> None:
    long = "word " * 200
    text = as_text([*outcomes(1, step=long), *outcomes(1, REMOVED)], 0)
    assert text.count("word") == 200
    assert "1 of 1 wrong solutions" in text
    assert "1 of 1 texts left out with a right answer" in text


def test_a_text_sampled_often_is_kept_once() -> None:
    outcome = Outcome("q")
    for step in (0, 0, 1):
        keep(outcome, REMOVED, question(), ["a", "b"], Verdict(step, "false"), "program (x)")
    assert [found["step"] for found in outcome.extra["verdicts"]] == [0, 1]


def test_the_file_is_as_wide_as_it_says_and_empty_without_verdicts() -> None:
    text = as_text(outcomes(1, step="word " * 200), 0)
    assert max(map(len, text.splitlines())) <= 100
    assert as_text([{"extra": {}}], 0) == ""
