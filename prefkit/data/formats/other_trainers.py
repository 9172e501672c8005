"""Rows as other trainers lay them out → prefkit's own fields. No text column is passed over.

    alpaca         instruction, input, system, history, chosen, rejected      (LLaMA-Factory)
    orca           system, question (or input, problem, query), chosen, rejected      (axolotl)
    argilla        instruction, chosen_response, rejected_response
    chat           conversations (or messages, conversation), chosen, rejected: one message each
    ultrafeedback  prompt as text, chosen and rejected as whole conversations, messages

A text column that is not read would go unnoticed: for example a question under another name. So it
is refused, unless its name is one of those that describe a row. `columns` maps names:
{"prompt": "query", "notes": null} reads one column and ignores another.
"""

import difflib
import functools
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from prefkit.data.formats.fields.messages import read_messages_field
from prefkit.data.formats.fields.row import OPTIONAL, OURS, Row
from prefkit.data.formats.not_pairs import refuse_other_kinds
from prefkit.data.pair import is_conversational
from prefkit.errors import ConfigError

Columns = Mapping[str, str | None]
QUESTIONS = ("question", "query", "problem", "input")  # one string that is the whole prompt
CONVERSATIONS = ("conversations", "conversation", "messages")
ALIASES = {"chosen_response": "chosen", "rejected_response": "rejected"}
# Fields of those layouts, which `columns` may name as well.
_LAYOUTS = ("instruction", "input", "history")
_READ = frozenset(
    (
        *("prompt", "chosen", "rejected", "margin", "responses", "pairs", "sft_target"),
        *("system", "tools", "chat_template_kwargs", "images", "image", "videos", "audio"),
        *OPTIONAL,
        *OURS,
    )
)
# Names that tell about a row, and whose text no model is shown: of any length, or a mere label.
_ABOUT = re.compile(
    r"(?:.*_)?(?:ids?|idx|index|uid|uuid|hash|url)|meta|metadata|extra_info"
    r"|answer|gold|ground_truth|final_answer|reference_answer"
    r"|.*_(?:scores?|ratings?|lengths?|tokens|logps)"
)
_LABELLED = re.compile(
    r"(?:.*_)?(?:sources?|dataset|models?|types?|tags?|category|language|difficulty|date)"
    r"|.*_(?:name|labels?)|(?:score|rating|reward|is|has|num)_.*"
    r"|origin|subset|split|categories|tasks?|kind|topic|domain|subject|level|lang|license"
    r"|timestamp|version|status|generator|annotator|target"
)
_LABEL_WORDS = 6
_KNOWN = re.compile(r"(?:.*_)?(?:ids?|idx|index|uid|uuid|hash|url|split|model|dataset|license)")


def check_columns(columns: Any, fields: Collection[str] = ()) -> None:
    """Raises ConfigError for anything but an object of names, or null where a column is left, and
    for a field that is none of `fields` (none given: of those of pairs)."""
    sound = isinstance(columns, Mapping) and all(
        isinstance(name, str) and (column is None or (isinstance(column, str) and column))
        for name, column in columns.items()
    )
    if not sound:
        raise ConfigError(
            f"columns is {columns!r}. Write an object of prefkit's fields and your columns, such "
            'as {"prompt": "question"}; null leaves a column out: {"notes": null}.'
        )
    fields = fields or {*_READ, *_LAYOUTS}
    for name, column in columns.items():
        if column is not None and name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            hint = f"Did you mean '{near[0]}'?" if near else f"Fields: {', '.join(sorted(fields))}."
            raise ConfigError(f"columns: '{name}' is no field that is read. {hint}")


def renamed(row: Row, columns: Columns) -> Row:
    """The row with its columns under the names that `columns` gives them.

    Raises:
        RowError: a column that the row lacks.
    """
    if not columns:
        return row
    taken = {column for column in columns.values() if column is not None}
    taken |= {column.split(".")[0] for column in taken if column not in row.names}
    for field, column in columns.items():
        if column not in (None, field) and field not in taken and _holds_text(row.get(field), 3):
            problem = f"is a column of its own, which '{column}' would take the place of"
            remedy = "Correct the option columns: say where its text belongs, or rename it."
            raise row.error(field, problem, remedy)
    data = {name: value for name, value in row.data.items() if name not in taken}
    for field, column in columns.items():
        if column is None:
            data.pop(field, None)
            continue
        value: Any = row.data
        for part in column.split(".") if column not in row.names else [column]:
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is None and column not in row.names:
            there = ", ".join(map(str, row.names)) or "none"
            problem = f"is mapped to the column '{column}', which the row lacks (it has: {there})"
            raise row.error(field, problem, "Correct the option columns.")
        data[field] = value
    shown = {field: column for field, column in columns.items() if column is not None}
    return row.of(data, shown)


def known(row: Row, also: tuple[str, ...] = ()) -> Row:
    """A row of a known layout with prefkit's own fields; any other row as it is.

    Args:
        row: with its columns under the names that the user gave them.
        also: fields that are read beside those of pairs.

    Raises:
        RowError: a layout that holds no pair, or a text column that is not read.
    """
    data, shown = dict(row.data), dict(row.shown)
    refuse_other_kinds(row)
    for alias, field in ALIASES.items():
        if alias in data and field not in data:
            data[field], shown[field] = data.pop(alias), alias
    if _is_couple(data.get("output")) and "chosen" not in data:
        data["chosen"], data["rejected"] = data.pop("output")
        shown |= {"chosen": "output[0]", "rejected": "output[1]"}
    row = row.of(data, shown)
    row = _from_conversation(row)
    if "prompt" not in row:
        row = _from_question(row)
    _check_texts(row, also)
    return row


def _is_couple(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(v, str) for v in value)


def _from_conversation(row: Row) -> Row:
    """The messages before the responses, under one of their names; or a repetition of the rest."""
    name = next((n for n in CONVERSATIONS if is_conversational(row.get(n))), None)
    if name is None:
        return row
    data = {field: value for field, value in row.data.items() if field != name}
    chosen = row.get("chosen")
    told = read_messages_field(row, name)
    if is_conversational(chosen):
        answer = read_messages_field(row, "chosen")
        before = read_messages_field(row, "prompt") if is_conversational(row.get("prompt")) else []
        if told in (answer, [*before, *answer]):
            return row.of(data, row.shown)
    if "prompt" not in row and chosen is not None:
        return row.of({**data, "prompt": told}, {**row.shown, "prompt": name})
    return row


def _from_question(row: Row) -> Row:
    """The prompt under the names that others give it; with alpaca's input and history."""
    data = dict(row.data)
    if isinstance(data.get("instruction"), str):
        field, text = "instruction", data.pop("instruction")
        more = data.pop("input", None)
        if isinstance(more, str) and more.strip():
            text = f"{text}\n{more}"
        elif more is not None and not isinstance(more, str):
            raise row.error("input", f"is a {type(more).__name__}, not text", "Write a string.")
    else:
        found = [name for name in QUESTIONS if name in data]
        if len(found) != 1:
            return row
        field, text = found[0], data.pop(found[0])
    history = data.pop("history", None)
    if isinstance(history, list):  # also an empty one: its dataset is of chats
        if not all(_is_couple(couple) for couple in history):
            remedy = "Write a list of [question, answer] couples of strings."
            raise row.error("history", "is no list of couples of texts", remedy)
        roles = ("user", "assistant")
        turns = (turn for couple in history for turn in zip(roles, couple, strict=True))
        said = [{"role": role, "content": content} for role, content in turns]
        text = [*said, {"role": "user", "content": text}]
    return row.of({**data, "prompt": text}, {**row.shown, "prompt": field})


def _check_texts(row: Row, also: tuple[str, ...]) -> None:
    # Without a prompt any text may be the question, whatever its name: `task`, `source_text`, …
    is_implicit = "prompt" not in row and isinstance(row.get("chosen"), str)
    unread, labelled = _unread(tuple(map(str, row.data)), is_implicit)
    unknown = [
        name
        for name in (*unread, *labelled)
        if name not in also
        and _holds_text(row.data.get(name), 3, _is_text if name in unread else _is_more_than_label)
        and row.data.get(name) != row.get("prompt")  # said twice
    ]
    is_pair = "responses" in row or ("chosen" in row and "rejected" in row)
    if not unknown or not (is_pair or also):  # that there is no pair is told instead
        return
    names = ", ".join(f"'{name}'" for name in unknown)
    problem = "holds text that is not read" if len(unknown) == 1 else f"({names}) hold text that "
    problem += "is not read" if len(unknown) > 1 else ""
    left = ", ".join(f"{name}: null" for name in unknown)
    remedy = f"Say what it is, as columns: {{prompt: {unknown[0]}}}, or leave it out, as columns: "
    remedy += f"{{{left}}}."
    if "prompt" in row:
        remedy = f"Leave it out, as columns: {{{left}}}, or say what it is, such as columns: "
        remedy += f"{{system: {unknown[0]}}}."
    raise row.error(unknown[0], problem, remedy)


@functools.lru_cache(maxsize=256)
def _unread(names: tuple[str, ...], is_implicit: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names that are no field: those that do not tell about a row, and those of labels."""
    others = [name for name in names if name not in _READ]
    plain = {name: name.lower().replace("-", "_") for name in others}
    if is_implicit:
        return tuple(name for name in others if not _KNOWN.fullmatch(plain[name])), ()
    others = [name for name in others if not _ABOUT.fullmatch(plain[name])]
    labelled = tuple(name for name in others if _LABELLED.fullmatch(plain[name]))
    return tuple(name for name in others if name not in labelled), labelled


def _is_text(value: str) -> bool:
    return bool(value.strip())


def _is_more_than_label(value: str) -> bool:
    """A line break, the end of a sentence, or many words: what a model may have to be shown."""
    said = value.strip()
    return "\n" in said or said.endswith((".", "?", "!", ":")) or len(said.split()) > _LABEL_WORDS


def _holds_text(value: Any, depth: int, counts: Callable[[str], bool] = _is_text) -> bool:
    if isinstance(value, str):
        return counts(value)
    if depth == 0 or not value:
        return False
    if isinstance(value, Mapping):
        return any(_holds_text(one, depth - 1, counts) for one in value.values())
    return isinstance(value, list) and any(_holds_text(one, depth - 1, counts) for one in value)
