"""Unpaired rows: one response, and a label that says whether it is desirable.

    {"prompt": …, "completion": "4", "label": true}      (TRL's unpaired preferences)

They are pairs of which one response is absent: the chosen one is there where the label is true, the
rejected one where it is false. Only methods that take responses by themselves read them (kto).
"""

from prefkit.data.formats.fields.responses import weighted_side
from prefkit.data.formats.fields.row import Row
from prefkit.data.formats.fields.weights import read_token_weights
from prefkit.data.formats.solutions import read_solution
from prefkit.data.pair import ABSENT, Pair
from prefkit.errors import RowError

FIELDS = ("completion", "label")
_OF_WEIGHTS = ("completion_weights", "completion_spans")
_LABEL = "Write true for a desirable completion, false for an undesirable one."


def is_unpaired(row: Row) -> bool:
    """Whether a row is one labelled response, rather than a pair."""
    return all(field in row for field in FIELDS) and not {"chosen", "rejected"} & {*row.names}


def read_unpaired(row: Row) -> Pair:
    """The pair of which the row is one response.

    Raises:
        RowError: a label that is no truth value; see `read_solution`.
    """
    label = row.get("label")
    if not isinstance(label, bool) and label not in (0, 1):
        raise row.error("label", f"is {label!r}", _LABEL)
    own = (*_OF_WEIGHTS, "label")
    rest = {name: value for name, value in row.data.items() if name not in own}
    solution = read_solution(row.of(rest, row.shown), {})
    if isinstance(solution, RowError):
        raise solution
    response, name = solution.response, "completion"
    if not response.messages:
        response = weighted_side(row, name, response.text)
    elif "completion_spans" in row:
        raise row.error("completion_spans", "needs a completion that is a string", "Write text.")
    elif (weights := read_token_weights(row, "completion_weights")) is not None:
        response = type(response)(**{**vars(response), "token_weights": weights})
    chosen, rejected = (response, ABSENT) if label else (ABSENT, response)
    front = {field: getattr(solution, field) for field in solution.__dataclass_fields__}
    del front["response"]
    return Pair(chosen=chosen, rejected=rejected, **front)
