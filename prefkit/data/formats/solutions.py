"""One row of a single solution → Solution: its context, and the response that is trained."""

from prefkit.data.formats.fields.messages import plain_message, read_messages_field, says_nothing
from prefkit.data.formats.fields.prompt import front_fields, read_prompt, refuse_media
from prefkit.data.formats.fields.row import Row
from prefkit.data.formats.other_trainers import Columns, known, renamed
from prefkit.data.pair import Side, Solution, is_conversational
from prefkit.data.text.thoughts import texts_of
from prefkit.errors import RowError

_NEEDED = "Give every row prompt and response."
_NAMES = ("prefix", "append_eos")
SOLUTION_FIELDS = ("prompt", "prefix", "response", "append_eos", "system", "tools")
_RESPONSES = ("response", "completion", "output")


def read_solution(row: Row, columns: Columns) -> Solution | RowError:
    """The row's solution, or why it has none; `columns` as in `prepare_solutions`."""
    try:
        row = renamed(row, columns)
        row.check_names(_NAMES)
        row = known(_split(row), _RESPONSES[:1])
        refuse_media(row)
        return Solution(
            prefix=row.text("prefix", empty=True) if "prefix" in row else "",
            response=_response(row),
            append_eos=row.eos(default=True),
            **front_fields(row, read_prompt(row, _NEEDED)),
        )
    except RowError as error:
        return error


def _split(row: Row) -> Row:
    """The row with a response: the last message of a chat, or a field of another name."""
    if "response" in row:
        return row
    data = dict(row.data)
    name = next((name for name in _RESPONSES if name in row), None)
    if name is not None:
        data["response"] = data.pop(name)
        return row.of(data, {**row.shown, "response": name})
    if "prompt" in row or not is_conversational(row.get("messages")):
        return row
    *before, last = read_messages_field(row, "messages")
    shown = {**row.shown, "prompt": "messages", "response": "messages"}
    del data["messages"]
    return row.of({**data, "prompt": before, "response": [last]}, shown)


def _response(row: Row) -> Side:
    if not is_conversational(row.get("response")):
        return Side(text=row.text("response", remedy=_NEEDED))
    messages = tuple(
        plain_message(row, message, "response", "plain")
        for message in read_messages_field(row, "response")
    )
    if messages[-1]["role"] != "assistant" or says_nothing(messages[-1]):
        problem = "does not end with something that the assistant says"
        raise row.error("response", problem, "End it with the assistant's response.")
    return Side(text="\n".join(texts_of(messages[-1].get("content"))), messages=messages)
