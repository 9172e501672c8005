"""Rows of preferences that are no pair of a chosen and a rejected text: what to make of them.

A pair is not guessed: which of several answers are compared, and how ties end, changes what is
learnt. So each kind is refused with the lines of Python that make pairs of it.
"""

from dataclasses import dataclass

from prefkit.data.formats.fields.row import Row


@dataclass(frozen=True)
class OtherKind:
    """A layout that is known and holds no pair.

    Attributes:
        columns: that it is known by; the first is named.
        problem: what that column holds.
        remedy: how to make a pair, in Python.
    """

    columns: tuple[str, ...]
    problem: str
    remedy: str


_RATED = """\
Make a pair of the best and the worst one, in Python:
  best, worst = (f(row["completions"], key=lambda c: c["overall_score"]) for f in (max, min))
  pair = {"prompt": row["instruction"], "chosen": best["response"], "rejected": worst["response"]}\
"""
_RATINGS = """\
Make a pair of the best and the worst one, in Python:
  rated = sorted(zip(row["ratings"], row["generations"]))
  pair = {"prompt": row["instruction"], "chosen": rated[-1][1], "rejected": rated[0][1]}\
"""
_RANKED = """\
Make a pair of two ranks (1 is the best), in Python:
  first, last = (f(row["answers"], key=lambda a: a["rank"]) for f in (min, max))
  pair = {"prompt": row["prompt"], "chosen": first["answer"], "rejected": last["answer"]}\
"""
_COMPARED = """\
Leave ties out, and sort the two, in Python:
  worse, better = ("response1", "response2")[:: 1 if row["overall_preference"] > 0 else -1]
  pair = {"prompt": row["context"], "chosen": row[better], "rejected": row[worse]}\
"""
_SAFE = """\
Sort the two, in Python:
  better = row["better_response_id"]
  pair = {"prompt": row["prompt"], "chosen": row[f"response_{better}"]}
  pair["rejected"] = row[f"response_{1 - better}"]\
"""
_LETTERS = """\
Sort the two, in Python:
  better, worse = "AB" if row["labels"] == 1 else "BA"
  pair = {"prompt": row["history"], "chosen": row[f"human_ref_{better}"]}
  pair["rejected"] = row[f"human_ref_{worse}"]\
"""
_UNPAIRED = """\
Train it with method kto, which takes responses by themselves, or give two completions of a prompt
in one row, one with label true and one with label false:
  pair = {"prompt": good["prompt"], "chosen": good["completion"], "rejected": bad["completion"]}\
"""
_NOT_A_PAIR = "holds rated completions, not a pair of two"
KINDS = (
    OtherKind(("completions",), _NOT_A_PAIR, _RATED),
    OtherKind(("generations", "ratings"), _NOT_A_PAIR, _RATINGS),
    OtherKind(("answers",), "holds ranked answers, not a pair of two", _RANKED),
    OtherKind(
        ("overall_preference", "response1", "response2"),
        "says which of two responses is better, and neither is named chosen",
        _COMPARED,
    ),
    OtherKind(
        ("better_response_id", "response_0", "response_1"),
        "says which of two responses is better, and neither is named chosen",
        _SAFE,
    ),
    OtherKind(
        ("labels", "human_ref_A", "human_ref_B"),
        "says which of two answers is better, and neither is named chosen",
        _LETTERS,
    ),
    OtherKind(("completion", "label"), "is one side of an unpaired preference", _UNPAIRED),
)
_LISTS = ("completions", "answers", "generations")


def refuse_other_kinds(row: Row) -> None:
    """Raises RowError for a row of one of these kinds; one with a chosen or a rejected response
    passes, whatever else it has."""
    if "chosen" in row or "rejected" in row:
        return
    for kind in KINDS:
        first = kind.columns[0]
        if not all(name in row for name in kind.columns):
            continue
        if first in _LISTS and not _is_list_of(row.get(first), dict if first != _LISTS[2] else str):
            continue
        raise row.error(first, kind.problem, kind.remedy)


def _is_list_of(value: object, kind: type) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], kind)
