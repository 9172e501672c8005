"""Verdicts on steps, to be looked at: what was blamed, by whom and why, ten of them drawn by seed.

No localiser is right everywhere, and a pair is only as good as the step that it was cut at. So what
a build blames is kept with each question, and some of it is put before the user's eyes.
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from prefkit.pairs.pipelines.outcome import LOCALISED, REMOVED, VERDICTS

FILE = "verdicts.txt"
SHOWN = 10
_HEADS = {
    LOCALISED: "{count} of {of} wrong solutions, and the step (>) that is called the first wrong",
    REMOVED: "{count} of {of} texts left out with a right answer, and the step (>) called wrong",
}
_WIDTH = 100  # columns of the file
_LONG = 400  # characters of a text on the terminal; the file has all of it


@dataclass(frozen=True)
class Drawn:
    """Some verdicts of a kind.

    Attributes:
        kind: `LOCALISED` or `REMOVED`.
        records: as they were kept, in the order of the questions.
        of: how many verdicts of the kind there are.
    """

    kind: str
    records: list[dict[str, Any]]
    of: int


def drawn(outcomes: Iterable[Mapping[str, Any]], kind: str, seed: int) -> Drawn:
    """Up to ten verdicts of a kind.

    Args:
        outcomes: of all questions, in the order of the questions.
        seed: of the build: the same verdicts are drawn again.
    """
    found = [
        record
        for outcome in outcomes
        for record in outcome["extra"].get(VERDICTS, ())
        if record["kind"] == kind
    ]
    chance = random.Random(f"{seed}/{kind}")
    indices = chance.sample(range(len(found)), min(SHOWN, len(found)))
    return Drawn(kind, [found[index] for index in sorted(indices)], len(found))


def as_text(outcomes: Sequence[Mapping[str, Any]], seed: int) -> str:
    """Up to ten verdicts of each kind, whole, 100 columns wide; "" where there are none."""
    stream = StringIO()
    for kind in (LOCALISED, REMOVED):
        show(drawn(outcomes, kind, seed), stream, width=_WIDTH)
    return stream.getvalue()


def show(verdicts: Drawn, stream: TextIO, width: int | None = None) -> None:
    """Writes verdicts for people: the question, the steps with the blamed one marked, the reason.

    Args:
        verdicts: nothing is written where there are none.
        stream: where to.
        width: columns; None = the terminal's, and texts of more than 400 characters are shortened.
    """
    if not verdicts.records:
        return
    whole = width is not None
    console = Console(file=stream, width=width, highlight=False, markup=False, emoji=False)
    console.print(_HEADS[verdicts.kind].format(count=len(verdicts.records), of=f"{verdicts.of:,}"))
    for number, record in enumerate(verdicts.records, start=1):
        table = Table.grid(padding=(0, 1))
        table.add_column(justify="right", no_wrap=True)
        table.add_column(overflow="fold")
        asked = f"{_shown(record['question'], whole)} → {_shown(record['answer'], whole)}"
        table.add_row(f"{number}.", Text(asked, "bold"))
        for index, step in enumerate(record["steps"]):
            is_blamed = index == record["step"]
            style = "red" if is_blamed else ""
            mark = f"{'> ' if is_blamed else ''}{index + 1}"
            table.add_row(Text(mark, style), Text(_shown(step, whole), style))
        table.add_row("", Text(f"{record['by']}: {record['reason']}", "italic"))
        with console.capture() as capture:
            console.print(table)
        lines = (line.rstrip() for line in capture.get().splitlines())  # padded to the width
        stream.write("\n" + "\n".join(lines) + "\n")


def _shown(text: str, whole: bool) -> str:
    """A text that a model wrote: what is no printable character is spelt out, for it could command
    the terminal."""
    text = text.strip("\n")
    if not whole and len(text) > _LONG:
        text = f"{text[:_LONG]} … ({len(text) - _LONG:,} more characters)"
    return "".join(
        c if c == "\n" or c.isprintable() else c.encode("unicode_escape").decode() for c in text
    )
