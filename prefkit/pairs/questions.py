"""Questions with their right answers, from files in any of the usual spellings.

    question | prompt | problem     text, or chat messages
    system                          optional: a system message before the question
    answer                          the right answer; GSM8K's worked solution with "#### 72" as well
    solution                        optional: a right solution, for localisers and judges

A question's id is a hash of its text. So neither order nor number of files changes it, shards never
overlap, and a build that is taken up again knows what it has done.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefkit.data.formats.fields.row import Row
from prefkit.data.formats.other_trainers import Columns, check_columns, renamed
from prefkit.data.pair import Message, is_conversational
from prefkit.data.sources.files import FILE_TYPES, Rows, load_rows
from prefkit.errors import ConfigError, NoRowsError, PrefkitError, RowError

PROMPT_FIELDS = ("question", "prompt", "problem")
_BESIDE = ("input", "context", "passage", "choices", "options", "history", "tools")
_GSM8K_MARK = "####"


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question.

    Attributes:
        id: 12 hex digits of the SHA-256 of the prompt.
        prompt: the question as text, or as chat messages.
        answer: the right answer, as the grader compares it.
        solution: a right solution, or None.
        source, row: where it came from, for messages; `row` is 0-based.
    """

    id: str
    prompt: str | tuple[Message, ...]
    answer: str
    solution: str | None
    source: str
    row: int

    @property
    def text(self) -> str:
        """The question alone, without roles."""
        if isinstance(self.prompt, str):
            return self.prompt
        return "\n".join(str(m["content"]) for m in self.prompt if m["role"] == "user")

    @property
    def prompt_field(self) -> str | list[Message]:
        """The prompt as a row of pairs holds it."""
        return self.prompt if isinstance(self.prompt, str) else list(self.prompt)


@dataclass(frozen=True)
class Questions:
    """Questions in the order of their files.

    Attributes:
        items: the questions.
        repeated: how many rows repeated an earlier one.
        ignored: what else lies in a folder of questions, and was not read.
    """

    items: tuple[Question, ...]
    repeated: int
    ignored: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Question]:
        return iter(self.items)


def read_questions(
    source: str,
    *,
    prompt_field: str | None = None,
    answer_field: str = "answer",
    solution_field: str = "solution",
    columns: Columns | None = None,
    split: str = "train",
    shard: str | None = None,
    max_questions: int | None = None,
) -> Questions:
    """Reads, checks and selects the questions of a build.

    Args:
        source: a .json, .jsonl or .parquet file, a folder of such files, or a dataset's name.
        prompt_field, answer_field, solution_field: where a row keeps them; a dot goes one level
            down ("extra.answer"). prompt_field None = the first of `PROMPT_FIELDS` that is there.
        columns: "prompt", "answer", "solution" or "system" → the column that holds it, in place of
            the three names above; a column → None leaves it out.
        split: which split of a dataset with several.
        shard: "2/8" = the second of eight parts, which never overlap.
        max_questions: only the first so many (of the shard).

    Raises:
        RowError: a row without a question or an answer.
        ConfigError: a shard that is none, or nothing left to ask.
        PrefkitError: the source cannot be read.
    """
    part = _parse_shard(shard)
    columns = {} if columns is None else columns
    check_columns(columns, ("prompt", "answer", "solution", "system"))
    if "prompt" in columns and prompt_field is not None:
        raise ConfigError("columns names the prompt, and prompt_field does. Keep one of the two.")
    prompt_field = "prompt" if columns.get("prompt") else prompt_field
    kept: dict[str, Question] = {}
    repeated = 0
    files, ignored = _files(source)
    for fields in _all_fields(files, split, columns):
        question = _read(fields, prompt_field, answer_field, solution_field)
        known = kept.setdefault(question.id, question)
        if known is not question:
            repeated += 1
            _same_answer(known, question)
    chosen = [q for q in kept.values() if part is None or int(q.id, 16) % part[1] == part[0]]
    if max_questions is not None:
        chosen = chosen[:max_questions]
    if not chosen:
        raise ConfigError(f"{source}: no question is left (shard {shard}). Choose another shard.")
    return Questions(tuple(chosen), repeated, ignored)


def _all_fields(files: list[str], split: str, columns: Columns) -> Iterator[Row]:
    """Every row of some files."""
    for file in files:
        rows = _rows(file, split)
        for index, row in enumerate(rows):
            if isinstance(row, RowError):
                raise row
            yield renamed(_Fields(rows.source, index, row), columns)


def _rows(file: str, split: str) -> Rows:
    try:
        return load_rows(file, split=split)
    except NoRowsError as error:
        raise ConfigError(f"{file}: holds no questions. Remove it, or fill it in.") from error


def _files(source: str) -> tuple[list[str], tuple[str, ...]]:
    """The source itself, or the files of rows in a folder, and what else lies there."""
    folder = Path(source).expanduser()
    if not folder.is_dir() or any((folder / name).exists() for name in _SAVED_BY_DATASETS):
        return [source], ()
    files = sorted(str(path) for path in folder.iterdir() if path.suffix in FILE_TYPES)
    others = sorted(path.name for path in folder.iterdir() if path.suffix not in FILE_TYPES)
    if not files:
        raise PrefkitError(
            f"{source}: the folder holds no file of questions ({', '.join(FILE_TYPES)})."
        )
    return files, tuple(name for name in others if not name.startswith("."))


_SAVED_BY_DATASETS = ("dataset_info.json", "dataset_dict.json")


class _Fields(Row):
    """A row whose fields may lie one level down."""

    def get(self, field: str) -> Any:
        value: Any = self.data
        for part in field.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value


def _read(fields: Row, prompt: str | None, answer: str, solution: str) -> Question:
    given = _prompt(fields, prompt)
    named = (prompt, answer, solution)
    for name in _BESIDE:  # a question without them would be another one
        if fields.get(name) and name not in named and name not in PROMPT_FIELDS:
            remedy = f"Write it into the question, or leave it out: columns: {{{name}: null}}."
            raise fields.error(name, "holds text that the model would not be shown", remedy)
    text = given if isinstance(given, str) else json.dumps(given, sort_keys=True)
    right, worked = _answer(fields, answer)
    own = fields.get(solution)
    if own is not None and not isinstance(own, str):
        raise fields.error(solution, f"is a {type(own).__name__}", "Write the solution as text.")
    return Question(
        id=hashlib.sha256(text.encode()).hexdigest()[:12],
        prompt=given,
        answer=right,
        solution=own if own and own.strip() else worked,
        source=fields.source,
        row=fields.index,
    )


def _prompt(fields: Row, name: str | None) -> str | tuple[Message, ...]:
    names = PROMPT_FIELDS if name is None else (name,)
    found = next((n for n in names if fields.get(n) is not None), None)
    remedy = "Give each row a question and its right answer, or name the fields (--prompt_field)."
    if found is None:
        there = ", ".join(map(str, fields.data)) or "none"
        raise fields.error(names[0], f"is missing (the row's fields: {there})", remedy)
    value = fields.get(found)
    if is_conversational(value):
        for message in value:
            if not isinstance(message, dict) or not isinstance(message.get("content"), str):
                raise fields.error(found, "holds a message without text", remedy)
        system = fields.get("system")
        messages = [{k: v for k, v in message.items() if v is not None} for message in value]
        if system and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": fields.as_text(system, "system")})
        return tuple(messages)
    text = fields.as_text(value, found)
    if fields.get("system"):
        system = {"role": "system", "content": fields.text("system")}
        return (system, {"role": "user", "content": text})
    return text


def _answer(fields: Row, name: str) -> tuple[str, str | None]:
    """The right answer, and the worked solution that GSM8K puts before it."""
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        problem = "is missing" if value is None else f"is a {type(value).__name__}"
        remedy = "Write the right answer as text or number, or name its field (--answer_field)."
        raise fields.error(name, problem, remedy)
    if isinstance(value, float) and not math.isfinite(value):
        raise fields.error(name, f"is {value}", "Write the right answer.")
    text = str(value).strip()
    worked, mark, last = text.rpartition(_GSM8K_MARK)
    answer = last.strip() if mark else text
    if not answer:
        raise fields.error(name, "is empty", "Write the right answer.")
    return answer, worked.strip() or None


def _same_answer(known: Question, again: Question) -> None:
    if known.answer == again.answer:
        return
    raise RowError(
        again.source,
        again.row,
        "answer",
        f"is {again.answer!r}, but {known.source}, row {known.row}, answers the same question with "
        f"{known.answer!r}",
        "Keep one of the two.",
    )


def _parse_shard(shard: str | None) -> tuple[int, int] | None:
    if shard is None:
        return None
    number, _, total = shard.partition("/")
    if not (number.isdigit() and total.isdigit() and 1 <= int(number) <= int(total)):
        raise ConfigError(f"shard is {shard!r}. Write NUMBER/PARTS, such as 2/8.")
    return int(number) - 1, int(total)
