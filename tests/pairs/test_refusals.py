"""What users get wrong in a build: one clear message each, before anything is sampled."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from prefkit.cli.build import run as run_build
from prefkit.cli.evaluate import run as run_evaluate
from prefkit.cli.main import main as prefkit
from prefkit.errors import ConfigError, ModelError, RowError
from prefkit.pairs.questions import read_questions
from prefkit.pairs.run.build import build, evaluate
from prefkit.pairs.run.manifest import model_identity
from tests.pairs.build_cases import MODEL

QUESTIONS = str(Path(__file__).parents[2] / "examples" / "tiny_model" / "questions")
SMALL: dict[str, Any] = {"max_questions": 4, "max_tokens": 56, "batch_size": 32}


def write(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def some_questions(count: int) -> list[dict[str, Any]]:
    lines = Path(QUESTIONS, "a.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines[:count]]


def nothing_sampled(folder: Path) -> bool:
    return not (folder / "completions.jsonl").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raises", "fails on the right answer '.*' itself: ZeroDivisionError"),
        ("one_argument", "itself: TypeError"),
        ("perhaps", "it gave 'perhaps', not True or False"),
        ("nobody", "cannot be imported"),
    ],
)
def test_a_bad_grader_is_found_before_sampling(tmp_path: Path, name: str, message: str) -> None:
    grader = f"tests.pairs.test_refusals:{name}"
    with pytest.raises(ConfigError, match=message):
        build("dpo", QUESTIONS, model=MODEL, out=str(tmp_path), grader=grader, **SMALL)
    assert nothing_sampled(tmp_path)


def raises(answer: str, right: str) -> bool:
    return bool(1 / 0)


def one_argument(answer: str) -> bool:
    return True


def perhaps(answer: str, right: str) -> Any:
    return "perhaps"


def test_a_question_too_long_is_named_or_skipped(tmp_path: Path) -> None:
    rows = some_questions(3)
    source = write(tmp_path / "q.jsonl", *rows, {"question": "1+" * 60, "answer": 1})
    given = {"model": MODEL, "max_tokens": 56}
    with pytest.raises(RowError, match=r"q\.jsonl: row 3: its question is longer"):
        evaluate(source, out=str(tmp_path / "a"), **given)
    assert nothing_sampled(tmp_path / "a")
    evaluate(source, out=str(tmp_path / "b"), too_long="skip", **given)
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    assert manifest["drops"] == {"questions: longer than the model reads": 1}
    assert manifest["rows"] == 3


def test_models_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="model: there is no folder /no/such"):
        build("dpo", QUESTIONS, model="/no/such", out=str(tmp_path))
    with pytest.raises(ConfigError, match="server_model; or say weigh: false"):
        build("cdpo", QUESTIONS, model=str(tmp_path), out="o", server="http://127.0.0.1:9/v1")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"concurrency": 4}, "concurrency has no effect without server"),
        ({"extra_body": {"top_k": 1}}, "extra_body has no effect without server"),
        ({"server": "http://127.0.0.1:9/v1", "extra_body": "[1]"}, "write an object"),
        ({"nonsense": 1}, "no option 'nonsense'"),
    ],
)
def test_options_without_effect_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build("dpo", QUESTIONS, model=MODEL, out="unused", **options)


def test_top_p_without_sampling_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="top_p has no effect at temperature 0"):
        evaluate(QUESTIONS, model=MODEL, out=str(tmp_path), top_p=0.5)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"holds files, but no manifest\.json"):
        build("dpo", QUESTIONS, model=MODEL, out=str(tmp_path), **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize("content", ["{", "[1]", "{}"])
def test_a_foreign_manifest_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(ConfigError, match=r"manifest\.json"):
        build("dpo", QUESTIONS, model=MODEL, out=str(tmp_path), **SMALL)


def test_joining_too_few_shards_samples_nothing(tmp_path: Path) -> None:
    given = {"model": MODEL, "max_tokens": 56, "batch_size": 32}
    source = write(tmp_path / "q.jsonl", *some_questions(8))
    part = str(tmp_path / "part")
    build("dpo", source, out=part, shard="1/2", **given)
    with pytest.raises(ConfigError, match=r"of 8 questions are in none of the shards"):
        build("dpo", source, out=str(tmp_path / "all"), join=[part], **given)
    assert nothing_sampled(tmp_path / "all")
    with pytest.raises(ConfigError, match="names a folder twice"):
        build("dpo", source, out=str(tmp_path / "all"), join=[part, part], **given)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "1+1=", "answer": float("nan")}, "field 'answer': is nan"),
        ({"question": "\ud800 1+1=", "answer": 2}, "field 'question': holds a broken character"),
    ],
)
def test_odd_values_of_questions_are_named(tmp_path: Path, row: dict, message: str) -> None:
    with pytest.raises(RowError, match=message):
        read_questions(write(tmp_path / "q.jsonl", row))


def test_an_empty_file_of_questions_is_named(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text("")
    with pytest.raises(ConfigError, match="holds no questions"):
        read_questions(str(tmp_path / "q.jsonl"))


def test_what_is_not_read_is_said_and_printed_commands_can_be_pasted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "my questions"
    folder.mkdir()
    (folder / "a.jsonl").write_text(
        "".join(Path(QUESTIONS, "a.jsonl").read_text().splitlines(True)[:6] * 2)
    )
    (folder / "b.tsv").write_text("question,answer\n")
    out = tmp_path / "it's here"
    flags = f"--model {MODEL} --max_tokens 56".split()
    assert run_build(["dpo", str(folder), *flags, "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "6 questions (6 rows repeated one) (not read: b.tsv)" in text
    (line,) = [line for line in text.splitlines() if line.startswith("Look at them:")]
    words = shlex.split(line.removeprefix("Look at them:"))
    assert words[:2] == ["prefkit", "inspect"]
    assert prefkit(words[1:]) == 0
    assert "scored" in capsys.readouterr().out


def test_an_evaluation_says_which_answers_it_could_not_compare(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = f"--model {MODEL} --max_tokens 56 --max_questions 3 --grading_seconds 0.4".split()
    name = "tests.pairs.test_refusals:slow_but_once"
    run_evaluate([QUESTIONS, *flags, "--grader", name, "--out", str(tmp_path)])
    assert "answers: grading ended in timeout: " in capsys.readouterr().out


def slow_but_once(answer: str, right: str) -> bool:
    while answer != right:
        pass
    return True


def test_the_manifest_keeps_no_password(tmp_path: Path) -> None:
    from prefkit.pairs.fields import BuildFields
    from prefkit.pairs.run.manifest import Manifest
    from prefkit.pairs.run.options import resolve

    given = BuildFields(questions="q", model="m", out=str(tmp_path))
    given.server, given.extra_body = "http://me:secret@host/v1", {"key": "secret"}
    manifest = Manifest(tmp_path, "dpo", resolve(given, "dpo"), read_questions(QUESTIONS))
    assert "secret" not in json.dumps(manifest.content)
    manifest.close()


def test_another_model_of_the_same_size_is_another_model(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    data = bytearray(8 << 20)
    weights.write_bytes(data)
    before = model_identity(str(tmp_path))
    data[3 << 20 : 5 << 20] = b"x" * (2 << 20)
    weights.write_bytes(data)
    assert model_identity(str(tmp_path)) != before
