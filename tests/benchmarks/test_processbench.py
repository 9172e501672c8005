"""The benchmark of localisers against people's labels, on a file of two solutions."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import processbench
from tests.pairs.tiny_servers import answering

QUESTION = "Ann has 3 boxes of 4 pens. She gives 5 away. How many are left?"
LABELLED = [
    {"id": "a", "problem": QUESTION, "steps": ["3 * 4 = 12", "12 - 5 = 6"], "label": 1,
     "final_answer_correct": False},
    {"id": "b", "problem": f" {QUESTION}\n", "steps": ["3 * 4 = 12", "12 - 5 = 7"], "label": -1,
     "final_answer_correct": True},
    {"id": "c", "problem": "What is 1 + 1?", "steps": ["1 + 1 = 3"], "label": 0,
     "final_answer_correct": False},
]  # fmt: skip


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    (tmp_path / "labels.json").write_text(json.dumps(LABELLED))
    row = {"question": QUESTION, "answer": "3 * 4 = 12\n12 - 5 = 7\n#### 7"}
    (tmp_path / "questions.jsonl").write_text(json.dumps(row))
    return [str(tmp_path / "labels.json"), "--solutions", str(tmp_path / "questions.jsonl")]


def told(argv: list[str], monkeypatch: Any, capsys: Any) -> list[str]:
    monkeypatch.setattr(sys, "argv", ["processbench", *argv])
    processbench.main()
    return capsys.readouterr().out.splitlines()


def test_the_program_is_counted_with_and_without_right_solutions(
    files: list[str], monkeypatch: Any, capsys: Any
) -> None:
    head, _, *lines = told(files, monkeypatch, capsys)
    assert head == "3 solutions, 2 with a right one to compare"
    assert lines[0].startswith("program, with a right solution: of 1 wrong answers 1 decided")
    assert "the labelled step 100 % (21 to 100)" in lines[0]
    assert lines[1] == (
        "  as a filter: of 1 right answers by right steps 0 left out, of 0 by a wrong step 0"
    )
    assert lines[2].startswith("program, without one: of 2 wrong answers 2 decided")


def test_a_judge_is_counted_and_what_it_failed_to_say(
    files: list[str], monkeypatch: Any, capsys: Any
) -> None:
    pytest.importorskip("openai")

    def answer(body: dict[str, Any]) -> tuple[int, Any]:
        if "messages" not in body:
            return 200, {"choices": [{"text": str(body["seed"]), "finish_reason": "stop"}]}
        text = body["messages"][0]["content"]
        message = {"content": "Step 1: incorrect" if "= 7\n\nGo" in text else None}
        reason = "stop" if message["content"] else "length"
        return 200, {"choices": [{"message": message, "finish_reason": reason}]}

    with answering(answer) as url:
        lines = told([*files, "--judge_server", url, "--judge", "m"], monkeypatch, capsys)
    assert lines[2].startswith("judge: of 1 wrong answers 0 decided")
    assert lines[3].startswith("  as a filter: of 1 right answers by right steps 1 left out")
    assert lines[4:] == ["  1 answers of the judge: cut off by judge_max_tokens while thinking"]
