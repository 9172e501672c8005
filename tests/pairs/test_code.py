"""Solutions with code steps: the pipeline that runs code as it comes, and rows that mask outputs.

The pipeline is driven by hand: what a model "writes" is given, the interpreter is the real one.
"""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefkit.data import ReadOptions, prepare_pairs, read_pairs
from prefkit.data.text.render import Renderer
from prefkit.errors import ConfigError
from prefkit.pairs.code.blocks import split_code_steps
from prefkit.pairs.code.interpreter import PythonInterpreter
from prefkit.pairs.engines.base import Request
from prefkit.pairs.fields import BuildFields
from prefkit.pairs.grading.grader import Grader
from prefkit.pairs.pipelines.context import Context, tokenize_options
from prefkit.pairs.pipelines.finding import Finder
from prefkit.pairs.pipelines.outcome import Outcome
from prefkit.pairs.pipelines.scdpo import CONTROLLED, NAIVE, scdpo
from prefkit.pairs.run.build import build
from prefkit.pairs.run.options import resolve
from tests.pairs.build_cases import MODEL, drive, question

QUESTION = question()
CODE = "Multiply.\n```python\nprint(6 * 7)"
WRONG_CODE = "Multiply.\n```python\nprint(6 + 7)"
_PIECES = st.lists(
    st.sampled_from(["a\n", "\n", "```python\nx\n```\n", "```output\n1\n```\n", "b", "```"]),
    max_size=8,
)


@given(pieces=_PIECES, style=st.sampled_from(["lines", "paragraphs"]))
@settings(max_examples=300, deadline=None)
def test_joined_code_steps_are_the_solution(pieces: list[str], style: str) -> None:
    text = "".join(pieces)
    assert "".join(split_code_steps(text, style)) == text


def test_code_and_its_output_are_one_step() -> None:
    text = "So:\n```python\nprint(1)\n```\n```output\n1\n```\nIt is 1."
    assert split_code_steps(text, "lines") == [
        "So:\n",
        "```python\nprint(1)\n```\n```output\n1\n```\n",
        "It is 1.",
    ]


def written(request: Request) -> tuple[str, str]:
    """What a model writes next: code until a block closes, then the answer it was shown."""
    if "```output\n42\n```" in request.text:
        return "It is 42.", "end"
    if "```output" in request.text:
        return "It is 13.", "end"
    good = "solution/0" in request.key
    if request.text.endswith("Multiply.\n"):
        return "```python\nprint(6 + 7)", "stop"
    return (CODE if good else WRONG_CODE), "stop"


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    from transformers import AutoTokenizer

    given = BuildFields(
        questions="q",
        model=MODEL,
        out="o",
        samples=2,
        string_prompts="chat",
        interpreter="python",
        wrong_per_question=1,
    )
    options = resolve(given, "scdpo")
    renderer = Renderer(AutoTokenizer.from_pretrained(MODEL), tokenize_options(options))
    with Grader(workers=1) as grader:
        finder = Finder("program", "none", 1)
        context = Context(options, grader, renderer, finder, PythonInterpreter())
        return drive(scdpo(QUESTION, context), written)[0]


def test_code_is_run_while_it_is_written(outcome: Outcome) -> None:
    naive, controlled = outcome.rows
    assert (naive["kind"], controlled["kind"]) == (NAIVE, CONTROLLED)
    kinds = [block["type"] for block in naive["chosen"][-1]["content"]]
    assert kinds == ["text", "code", "execution", "text"]
    assert "42" in naive["chosen"][-1]["content"][2]["content"]
    assert "13" in naive["rejected"][-1]["content"][2]["content"]
    assert outcome.counts["solutions right"] == outcome.counts["solutions wrong"] == 1


def test_both_sides_share_their_front_exactly(outcome: Outcome) -> None:
    controlled = outcome.rows[1]
    assert controlled["chosen"][:-1] == controlled["rejected"][:-1]
    assert controlled["chosen"][-2]["role"] == "assistant_correct"
    front = "".join(controlled["prefix_steps"])
    assert front + "".join(controlled["chosen_steps"]) == "".join(
        block["content"] for block in outcome.rows[0]["chosen"][-1]["content"]
    )


def test_what_the_interpreter_printed_is_never_scored(outcome: Outcome) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    pair = read_pairs(outcome.rows[:1], level="solution")[0]
    start, end = pair.chosen.masked[0]
    assert "42" in pair.chosen.text[start:end]
    masked, scored = [
        prepare_pairs(
            outcome.rows[:1], tokenizer, reading=ReadOptions(level="solution", mask_tool_output=how)
        )[0][1]
        for how in (True, False)
    ]
    hidden = scored.chosen.scored.sum() - masked.chosen.scored.sum()
    assert hidden == end - start  # one token a character


def test_an_interpreter_needs_chat_form_and_no_stop_texts(tmp_path: Path) -> None:
    questions = tmp_path / "q.jsonl"
    questions.write_text('{"question": "1+1=", "answer": 2}\n')
    common = {"model": MODEL, "out": str(tmp_path / "out"), "interpreter": "python"}
    with pytest.raises(ConfigError, match="--string_prompts chat"):
        build("scdpo", str(questions), **common)
    with pytest.raises(ConfigError, match="stop texts would cut code"):
        build("scdpo", str(questions), stop=["\n"], **common)
