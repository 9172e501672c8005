"""Rows with several rejected responses to one chosen one → rows of one pair each.

    {"prompt": …, "chosen": "4", "rejected": ["5", "6"]}
    {"prompt": …, "chosen": [message, …], "rejected": [[message, …], [message, …]]}

A list of messages is one response. What speaks of a rejected response is then a list as well, with
an entry for each. The pairs keep the row's source and number, which is what makes them a group
(`prefkit.data.groups`); in messages the field is `rejected[2]`.
"""

from dataclasses import replace
from typing import Any

from prefkit.data.formats.fields.row import Row
from prefkit.data.formats.strings import beginning
from prefkit.data.pair import Pair, is_conversational
from prefkit.errors import EmptyError, RowError

_OF_EACH = ("rejected_weights", "rejected_spans", "full_rejected")
_NEED_PROMPT = ("prompt", "prefix", "chosen_spans", "rejected_spans")


def is_several(value: Any) -> bool:
    """Whether the field `rejected` is a list of responses: of texts, or of lists of messages."""
    if not isinstance(value, list) or is_conversational(value):
        return False
    return not value or any(isinstance(one, str | list) for one in value)


def by_rejected(row: Row) -> list[Row]:
    """The row, or one row for each of its rejected responses.

    Args:
        row: with its fields under prefkit's names.

    Raises:
        RowError: no response at all, or a field beside it that has not an entry for each.
    """
    if not is_several(row.get("rejected")):
        return [row]
    responses = row.get("rejected")
    if not responses:
        remedy = "Give a rejected response, or several."
        raise row.error("rejected", "is an empty list", remedy, EmptyError)
    _check_responses(row, responses)
    if "prob_result" in row:
        problem = f"speaks of one rejected response, but there are {len(responses)}"
        raise row.error("prob_result", problem, "Score each pair as a row of its own.")
    of_each = [name for name in _OF_EACH if name in row]
    if isinstance(row.get("margin"), list):  # a number is that of all
        of_each.append("margin")
    for name in of_each:
        _check_entries(row, name, len(responses))
    data, names = {**row.data, **_prompt_of_all(row)}, ["rejected", *of_each]
    return [_one(row, data, names, place) for place in range(len(responses))]


def same_choice(first: Pair, pair: Pair | RowError, row: Row) -> Pair | RowError:
    """The pair, if it differs from the row's first one in its rejected response alone; else the
    error: without a prompt, messages that both sides begin with are taken for it, in each pair."""
    if isinstance(pair, RowError) or first == replace(
        pair, rejected=first.rejected, margin=first.margin
    ):
        return pair
    problem = "is missing, and the rejected responses share beginnings of different lengths with "
    return row.error("prompt", f"{problem}'chosen'", "Give the prompt.")


def _check_responses(row: Row, responses: list[Any]) -> None:
    """Texts or lists of messages, all of one kind, and none of them twice."""
    kind = type(next(one for one in responses if isinstance(one, str | list)))
    for place, one in enumerate(responses):
        if one is not None and not isinstance(one, kind):
            problem = f"is a {type(one).__name__} beside a {kind.__name__}"
            remedy = "Write texts, or lists of messages, all of one kind."
            raise row.error(f"rejected[{place}]", problem, remedy)
        if one is not None and (first := responses.index(one)) < place:
            problem = f"is the same response as rejected[{first}], and would count twice"
            raise row.error(f"rejected[{place}]", problem, "Write each response once.")


def _check_entries(row: Row, name: str, count: int) -> None:
    value = row.get(name)
    if isinstance(value, list) and len(value) == count:
        return
    held = f"{len(value)} entries" if isinstance(value, list) else f"a {type(value).__name__}"
    problem = f"is {held} for {count} rejected responses"
    raise row.error(name, problem, "Write a list with one entry for each, null where it has none.")


def _prompt_of_all(row: Row) -> dict[str, Any]:
    """Without a prompt, the beginning that all texts share, and what follows it; {} where the
    reader of a pair has to say what is wrong."""
    chosen, responses = row.get("chosen"), row.get("rejected")
    texts = [chosen, *responses]
    if any(name in row for name in _NEED_PROMPT) or not all(isinstance(t, str) for t in texts):
        return {}
    length = beginning(texts)
    if chosen in responses or not chosen[:length].strip():
        return {}
    rest = [text[length:] for text in responses]
    return {"prompt": chosen[:length], "chosen": chosen[length:], "rejected": rest}


def _one(row: Row, data: dict[str, Any], names: list[str], place: int) -> Row:
    entries = {name: data[name][place] for name in names}
    shown = {name: f"{row.shown.get(name, name)}[{place}]" for name in names}
    return row.of({**data, **entries}, {**row.shown, **shown})
