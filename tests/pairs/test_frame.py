"""A build's frame without a model: steps, journals, pipelines side by side, manifests, options."""

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefkit.cli import evaluate
from prefkit.cli.build import COMMAND, read
from prefkit.errors import ConfigError, PrefkitError
from prefkit.files.journal import Journal, read_lines
from prefkit.options.parse import split
from prefkit.pairs.asking import Asking, together
from prefkit.pairs.engines.base import Completion, Request, seed_of
from prefkit.pairs.fields import BuildFields
from prefkit.pairs.pipelines.evaluate import summary, wilson
from prefkit.pairs.pipelines.scdpo import temperatures
from prefkit.pairs.questions import Questions, read_questions
from prefkit.pairs.run.manifest import Manifest
from prefkit.pairs.run.options import resolve
from prefkit.pairs.steps import STYLES, label_of, split_steps

NUMBERED = "Let's think.\nStep 1: 2+2=4\nso far.\n\nStep 2: 4+1=5\nStep 3. done"
_TEXT = st.text(alphabet="ab \n\tStep1:.", max_size=60)


@pytest.mark.parametrize("style", STYLES)
@given(text=_TEXT)
@settings(max_examples=200, deadline=None)
def test_joined_steps_are_the_solution(style: str, text: str) -> None:
    steps = split_steps(text, style)
    assert "".join(steps) == text
    assert all(steps)


def test_steps_of_each_style() -> None:
    assert split_steps("a\n\nb\nc", "lines") == ["a\n\n", "b\n", "c"]
    assert split_steps("\n\na\nb\n\nc", "paragraphs") == ["\n\na\nb\n\n", "c"]
    steps = split_steps(NUMBERED, "numbered")
    assert [step.split()[-1] for step in steps] == ["far.", "4+1=5", "done"]
    assert label_of(steps[0], "numbered") == "Let's think.\nStep 1:"
    assert label_of(steps[2], "numbered") == "Step 3."
    assert label_of(steps[1], "lines") == ""


def test_a_torn_line_is_cut_off_and_whole_ones_stay(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    journal = Journal(path)
    journal.append([{"n": 1}, {"n": 2}])
    journal.close()
    with open(path, "ab") as file:
        file.write(b'{"n": 3, "text": "tor')
    assert [line["n"] for line in read_lines(path)] == [1, 2]
    journal = Journal(path)
    journal.append([{"n": 3}])
    journal.close()
    assert [line["n"] for line in read_lines(path)] == [1, 2, 3]


def test_a_file_that_is_one_torn_line_becomes_empty(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    path.write_bytes(b"x" * 200_000)
    Journal(path).close()
    assert path.read_bytes() == b""


def test_an_edited_journal_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    path.write_text('{"n": 1}\nhello\n{"n": 2}\n')
    with pytest.raises(PrefkitError, match="line 2 is no JSON object"):
        list(read_lines(path))


def ask(name: str, rounds: int) -> Asking[str]:
    """Asks `rounds` times for one more text than before; returns what it was sent."""
    heard = ""
    for count in range(1, rounds + 1):
        requests = [
            Request(key=f"{name}/{count}/{i}", temperature=1.0, max_tokens=1, seed=0)
            for i in range(count)
        ]
        heard += "".join(completion.text for completion in (yield requests))
    return heard


def test_side_by_side_every_part_hears_its_own_answers() -> None:
    crew = together([ask("a", 1), ask("b", 3), ask("c", 0), ask("d", 2)])
    rounds, sent = 0, None
    while True:
        try:
            requests = next(crew) if sent is None else crew.send(sent)
        except StopIteration as stop:
            heard = stop.value
            break
        rounds += 1
        sent = [
            Completion(key=r.key, text=r.key.replace("/", ""), finish="end", tokens=1)
            for r in requests
        ]
    assert heard == ["a10", "b10b20b21b30b31b32", "", "d10d20d21"]
    assert rounds == 3  # as many as the longest part's


def test_seeds_differ_by_key_and_by_build() -> None:
    seeds = {seed_of(base, f"q{i}/solution/0") for base in (0, 1) for i in range(500)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_an_interval_is_wilsons() -> None:
    """Against his formula's published values: 1 of 10, 50 of 100, and none of 10."""
    assert wilson(0.1, 10) == pytest.approx((0.0179, 0.4042), abs=1e-4)
    assert wilson(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert wilson(0.0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)


def test_samples_of_one_question_are_no_independent_trials() -> None:
    rows = [
        {"id": f"q{i}-{n}", "right": n == 0, "decided": n < 2} for i in range(10) for n in range(4)
    ]
    found = summary(rows)
    assert (found["accuracy"], found["solved"]) == (0.25, 1.0)
    assert (found["wrong"], found["undecided"]) == (0.25, 0.5)
    assert found["interval"] == wilson(0.25, 10)


def test_rising_temperatures_reach_the_cap_and_stop() -> None:
    assert temperatures([1.1, 0.1, 1.3]) == [1.1, 1.2, 1.3, 1.3, 1.3]
    assert temperatures([1.1, 0.0, 1.4]) == [1.1] * 4


# -- the folder of a build ---------------------------------------------------------------------


@pytest.fixture
def questions(tmp_path: Path) -> Questions:
    path = tmp_path / "q.jsonl"
    path.write_text('{"question": "1+1=", "answer": 2}\n{"question": "1+2=", "answer": 3}\n')
    return read_questions(str(path))


@pytest.fixture
def options(tmp_path: Path) -> Iterator[BuildFields]:
    (tmp_path / "out").mkdir()
    return resolve(
        BuildFields(questions="q.jsonl", model="some-model", out=str(tmp_path / "out")), "dpo"
    )


def open_manifest(options: BuildFields, questions: Questions, method: str = "dpo") -> Manifest:
    return Manifest(Path(options.out), method, options, questions)


def test_the_same_build_is_taken_up_and_another_refused(
    options: BuildFields, questions: Questions
) -> None:
    first = open_manifest(options, questions)
    first.begin("an engine")
    first.close()
    other_speed = dataclasses.replace(options, concurrency=2, retries=1)
    open_manifest(other_speed, questions).close()
    with pytest.raises(ConfigError, match=r"with top_p 1\.0, now it is 0\.5"):
        open_manifest(dataclasses.replace(options, top_p=0.5), questions)
    with pytest.raises(ConfigError, match="other questions"):
        open_manifest(options, Questions(questions.items[:1], 0))
    with pytest.raises(ConfigError, match="another method"):
        open_manifest(options, questions, "cdpo")


def test_two_builds_at_once_in_one_folder_are_refused(
    options: BuildFields, questions: Questions
) -> None:
    first = open_manifest(options, questions)
    with pytest.raises(ConfigError, match="another build is writing"):
        open_manifest(options, questions)
    first.close()
    open_manifest(options, questions).close()


def test_a_folder_of_something_else_is_left_alone(
    options: BuildFields, questions: Questions
) -> None:
    (Path(options.out) / "pairs.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match=r"holds files, but no manifest\.json"):
        open_manifest(options, questions)


# -- the command line --------------------------------------------------------------------------


def parse(method: str, argv: list[str]) -> BuildFields:
    command = evaluate.COMMAND if method == "evaluate" else COMMAND
    return read(command, method, *split(command, argv))


@pytest.mark.parametrize(
    ("method", "line", "message"),
    [
        ("dpo", "q.jsonl --out o", "model is missing"),
        ("dpo", "q.jsonl --model m", "out is missing"),
        ("dpo", "--model m --out o", "questions is missing"),
        ("dpo", "a b --model m --out o", "One file or folder"),
        ("dpo", "q --model m --out o --temprature 1", "Did you mean 'temperature'"),
        ("dpo", "q --model m --out o --localiser judge", "localiser has no effect on dpo"),
        ("scdpo", "q --model m --out o --contrast_beta 2", "contrast_beta has no effect on scdpo"),
        ("dpo", "q --model m --out o --samples 0", "samples is 0; it must be 1 or more"),
        ("dpo", "q --model m --out o --temperature 0", "greedy solutions"),
        ("dpo", "q --model m --out o --temperature 0.5 nan", "temperature is nan"),
        ("evaluate", "q --model m --out o --samples 4", "greedy solutions"),
        ("dpo", "q --model m --out o --top_p 1.5", "top_p is 1.5"),
        ("dpo", "q --model m --out o --steps words", "steps is 'words'; it must be one of"),
        ("scdpo", "q --model m --out o --rising 1.1", "rising"),
        ("dpo", "q --model", "model needs a value"),
    ],
)
def test_mistakes_of_a_command_line_are_named(method: str, line: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(method, line.split())


_NOBODY = "nobody asks a judge here. Say "


@pytest.mark.parametrize(
    ("method", "line", "message"),
    [
        (
            "step-dpo",
            "--localiser judge --rollouts 8",
            "rollouts has no effect with localiser judge",
        ),
        ("step-dpo", "--judge_model j --rollouts 8", "where a judge is given: the judge is asked"),
        (
            "step-dpo",
            "--localiser program --judge_server u",
            f"{_NOBODY}localiser: judge or process",
        ),
        ("step-dpo", "--judge_max_tokens 9", f"judge_max_tokens has no effect: {_NOBODY}"),
        (
            "dpo",
            "--judge_model j",
            f"judge_model has no effect: {_NOBODY}process_filter: judge, or",
        ),
        ("scdpo", "--process_filter program --judge_model j", _NOBODY),
        ("scdpo", "--judge_model j --judge_max_tokens 0", "judge_max_tokens is 0; it must be 1"),
        ("evaluate", "--judge_max_tokens 9", "judge_max_tokens has no effect on evaluate"),
    ],
)
def test_options_of_somebody_who_is_never_asked_are_refused(
    method: str, line: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(method, ["q", "--model", "m", "--out", "o", *line.split()])


@pytest.mark.parametrize(
    ("method", "line"),
    [
        ("step-dpo", "--judge_server u --judge_max_tokens 9"),
        ("step-dpo", "--localiser judge --judge_max_tokens 9"),
        ("step-dpo", "--localiser program --process_filter judge --judge_model j"),
        ("step-dpo", "--rollouts 4 --process_filter judge"),
        ("step-dpo", "--localiser rollouts --rollouts 4 --judge_model j"),
        ("scdpo", "--judge_model j"),
        ("cdpo", "--judge_model j --process_filter judge"),
    ],
)
def test_options_of_somebody_who_may_be_asked_are_taken(method: str, line: str) -> None:
    parse(method, ["q", "--model", "m", "--out", "o", *line.split()])


def test_flags_and_defaults_become_options() -> None:
    flags = ["--model", "m", "--out", "o", "--temperature", "0.5", "1", "--opening", r"So:\n"]
    options = parse("cdpo", ["q", *flags])
    assert (options.samples, options.temperature, options.top_p) == (64, [0.5, 1.0], 0.95)
    assert options.opening == "So:\n"


def test_help_needs_no_model_and_names_every_option() -> None:
    command = [sys.executable, "-m", "prefkit", "build", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    missing = [
        field.name
        for field in dataclasses.fields(BuildFields)
        if field.name != "questions" and f"--{field.name}" not in done.stdout
    ]
    assert not missing
