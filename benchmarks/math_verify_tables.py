r"""Where do prefkit's verdicts differ from those of Math-Verify's own tests?

    python -m benchmarks.math_verify_tables PATH_TO_ITS_TESTS [--show]

The folder is `tests/` of github.com/huggingface/Math-Verify; nothing of it is kept here. Its
parametrised tests hold a right answer (LaTeX, plain or a whole solution), a predicted text and the
verdict. Each goes to the `Grader` as it is: the predicted text as a solution, with prefkit's own
way of finding the answer in either, whatever extraction its test configures (LaTeX, plain
expressions or both). A pair that occurs twice counts once; pairs whose verdict hangs on an option
of math-verify (`strict`, `allow_set_relation_comp`, a rounding of two decimals) do not count.
"""

import argparse
import importlib
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from prefkit.pairs.grading.grader import Grader
from prefkit.pairs.grading.verdicts import Grade

_ROUNDING = 6  # decimals: math-verify's default, the only one that counts here


class Case(NamedTuple):
    gold: str
    predicted: str
    equal: bool


def cases(folder: Path) -> list[Case]:
    """The cases of the tests in a folder, whose parent becomes importable."""
    sys.path.insert(0, str(folder.resolve().parent))
    verdicts: dict[tuple[str, str], set[bool]] = {}
    optional = set()
    for path in sorted(folder.glob("test_*.py")):
        for row in _rows(importlib.import_module(f"{folder.name}.{path.stem}")):
            if "gold" not in row:
                continue
            pair = (str(row["gold"]), str(row["pred"]))
            verdicts.setdefault(pair, set()).add(bool(row.get("expected", row.get("result"))))
            if int(str(row.get("precision", _ROUNDING))) < _ROUNDING:
                optional.add(pair)
    return [
        Case(*pair, *verdict)
        for pair, verdict in verdicts.items()
        if len(verdict) == 1 and pair not in optional
    ]


def _rows(module: object) -> Iterator[dict[str, object]]:
    """Every row of every parametrised test of a module, by the names of its arguments."""
    for name, test in vars(module).items():
        marks = getattr(test, "pytestmark", []) if name.startswith("test_") else []
        for mark in marks:
            if mark.name == "parametrize":
                names, values = mark.args
                names = names.replace(" ", "").split(",") if isinstance(names, str) else names
                for row in values:
                    yield dict(zip(names, row, strict=True))


def kind_of(case: Case, grade: Grade) -> str:
    """ "agrees", "false right", "false wrong" or "undecided: …"."""
    if not grade.decided:
        return f"undecided: {grade.how}"
    if grade.correct == case.equal:
        return "agrees"
    return "false wrong" if case.equal else "false right"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("tests", type=Path, help="the folder tests/ of Math-Verify's repository")
    parser.add_argument("--show", action="store_true", help="every case where they differ")
    options = parser.parse_args()
    found = cases(options.tests)
    with Grader(workers=2, seconds=5.0) as grader:
        grades = grader.grade_many([(case.predicted, case.gold) for case in found])
    kinds = [kind_of(case, grade) for case, grade in zip(found, grades, strict=True)]
    print(f"{kinds.count('agrees')} of {len(found)} agree")
    for kind, number in Counter(kinds).most_common():
        print(f"  {number:4d}  {kind}")
    if options.show:
        for case, grade, kind in zip(found, grades, kinds, strict=True):
            if kind != "agrees":
                print(f"\n{kind}: their verdict is {case.equal}; read as {grade.answer!r}")
                print(f"  gold       {case.gold[-300:]!r}\n  predicted  {case.predicted[-300:]!r}")


if __name__ == "__main__":
    main()
