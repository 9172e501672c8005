"""Questions of a build: spellings, ids, shards, and rows that cannot be asked."""

import json
from pathlib import Path

import pytest

from prefkit.errors import ConfigError, PrefkitError, RowError
from prefkit.pairs.questions import read_questions


def write(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def numbered(count: int) -> list[dict[str, object]]:
    return [{"question": f"{i}+1=", "answer": i + 1} for i in range(count)]


def test_gsm8k_answers_are_split_into_solution_and_answer(shared_data: Path) -> None:
    questions = read_questions(str(shared_data / "gsm8k" / "train.jsonl"), max_questions=3)
    first = questions.items[0]
    assert first.answer == "72"
    assert first.solution is not None
    assert first.solution.endswith("altogether in April and May.")


def test_nested_fields_are_named_with_a_dot(shared_data: Path) -> None:
    source = str(shared_data / "math" / "math500.jsonl")
    fields = {"answer_field": "extra.answer", "solution_field": "extra.solution"}
    questions = read_questions(source, max_questions=2, **fields)
    assert questions.items[0].answer == "90"
    assert "direction vector" in (questions.items[0].solution or "")


@pytest.mark.parametrize("field", ["question", "prompt", "problem"])
def test_the_usual_names_of_the_question_are_found(tmp_path: Path, field: str) -> None:
    source = write(tmp_path / "q.jsonl", {field: "2+2?", "answer": 4})
    assert read_questions(source).items[0].prompt == "2+2?"


def test_chat_messages_are_questions_too(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "Add."}, {"role": "user", "content": "2+2?"}]
    question = read_questions(write(tmp_path / "q.jsonl", {"prompt": messages, "answer": "4"}))
    assert question.items[0].prompt_field == messages
    assert question.items[0].text == "2+2?"


def test_shards_are_disjoint_and_complete_whatever_the_order_of_the_rows(tmp_path: Path) -> None:
    rows = numbered(50)
    one, two = write(tmp_path / "a.jsonl", *rows), write(tmp_path / "b.jsonl", *rows[::-1])
    parts = [{q.id for q in read_questions(one, shard=f"{i}/3")} for i in (1, 2, 3)]
    again = [{q.id for q in read_questions(two, shard=f"{i}/3")} for i in (1, 2, 3)]
    assert parts == again
    assert sum(map(len, parts)) == len(set.union(*parts)) == 50


def test_a_folder_is_all_of_its_files_and_repeated_questions_count_once(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", *numbered(3))
    write(tmp_path / "b.jsonl", *numbered(5))
    questions = read_questions(str(tmp_path))
    assert (len(questions), questions.repeated) == (5, 3)


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"answer": "1"}, "question"),
        ({"question": " ", "answer": "1"}, "question"),
        ({"question": "2+2?"}, "answer"),
        ({"question": "2+2?", "answer": ""}, "answer"),
        ({"question": "2+2?", "answer": "so #### "}, "answer"),
        ({"question": 3, "answer": "1"}, "question"),
        ({"question": "2+2?", "answer": True}, "answer"),
        ({"question": "2+2?", "answer": "1", "solution": ["a"]}, "solution"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: dict, field: str) -> None:
    source = write(tmp_path / "q.jsonl", *numbered(2), row)
    with pytest.raises(RowError, match=f"row 2, field '{field}'"):
        read_questions(source)


def test_one_question_with_two_answers_is_refused(tmp_path: Path) -> None:
    rows = [{"question": "2+2?", "answer": "4"}, {"question": "2+2?", "answer": "5"}]
    with pytest.raises(RowError, match=r"row 1, field 'answer': is '5', but .* row 0"):
        read_questions(write(tmp_path / "q.jsonl", *rows))


@pytest.mark.parametrize("shard", ["0/2", "3/2", "2", "a/b", "1/0"])
def test_a_shard_that_is_none_is_refused(tmp_path: Path, shard: str) -> None:
    with pytest.raises(ConfigError, match="shard"):
        read_questions(write(tmp_path / "q.jsonl", *numbered(2)), shard=shard)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PrefkitError, match="no file of questions"):
        read_questions(str(tmp_path))
