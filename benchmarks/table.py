"""Tables in Markdown from records: one a case, with the reasons of what is missing beneath."""

from collections.abc import Sequence

from benchmarks.measure import OUT_OF_MEMORY, Record
from benchmarks.questions import EVERY, Question
from benchmarks.ways import WAYS

MB = 1e6
_GEMMS = {"two_pass": "gemms_two_pass"}
_ERRORS = ("loss", "logp", "kl", "d_hidden", "d_weight")
_HEADINGS = ("loss", "log-prob", "KL", "dH", "dW")


def question_table(question: Question, records: Sequence[Record]) -> str:
    """A section: the question, and for every case measured a table."""
    parts = [f"## {question.title}", f"`benchmarks/{question.name}.py`"]
    first: dict[tuple[int, str], Record] = {}
    cases: dict[str, list[Record]] = {}
    for record in records:
        cases.setdefault(f"{record.group}: {record.case.title}", []).append(record)
        first.setdefault((record.group, record.way), record)
    for of_case in cases.values():
        base = [first[record.group, record.way] for record in of_case]
        parts.append(case_table(of_case, base))
    return "\n\n".join(parts) + "\n"


def case_table(records: Sequence[Record], first: Sequence[Record]) -> str:
    """One case.

    Args:
        records: one a way.
        first: of the same ways, in the first case of the group; where it is another case, a column
            gives the time as a share of that case's.
    """
    compare = any(a is not b for a, b in zip(records, first, strict=True))
    timed = any(record.times for record in records)
    weighed = any(record.memory is not None for record in records)
    header, rows, notes = ["way"], [], []
    if timed:
        header += ["median s", "least – most", "time × prefkit", "time × bare products"]
        header += ["time × first case"] if compare else []
    if weighed:
        header += ["MB added", "MB without dW", "MB × prefkit"]
    header += [f"error, {name}" for name in _HEADINGS]
    by_way = {record.way: record for record in records}
    for record, base in zip(records, first, strict=True):
        row = [WAYS[record.way].label]
        if record.note:
            notes.append(f"{WAYS[record.way].label}: {record.note}")
        missing = _missing(record)
        if timed:
            row += _time_cells(record, by_way, missing)
            row += [_ratio(record.seconds, base.seconds)] if compare else []
        if weighed:
            row += _memory_cells(record, by_way.get("prefkit"), missing)
        row += [_error(record.errors.get(name), missing) for name in _ERRORS]
        rows.append(row)
    left_out = [WAYS[name].label for name in EVERY if name not in by_way]
    lines = [f"**{records[0].case.title}**", "", *_markdown(header, rows)]
    lines += [""] if notes or left_out else []
    lines += [f"- {note}" for note in notes]
    lines += [f"- not asked here: {'; '.join(left_out)}"] if left_out else []
    return "\n".join(lines)


def share_of_products(records: Sequence[Record]) -> float | None:
    """Time of the bare products over that of prefkit, in the records of one case."""
    by_way = {record.way: record.seconds for record in records}
    ours, bare = by_way.get("prefkit"), by_way.get("gemms")
    return bare / ours if ours and bare else None


def _time_cells(record: Record, by_way: dict[str, Record], missing: str) -> list[str]:
    if record.seconds is None:
        return [missing] * 4
    ours, bare = by_way.get("prefkit"), by_way.get(_GEMMS.get(record.way, "gemms"))
    return [
        f"{record.seconds:.3g}",
        f"{min(record.times):.3g} – {max(record.times):.3g}",
        _ratio(record.seconds, ours.seconds if ours else None),
        _ratio(record.seconds, bare.seconds if bare else None),
    ]


def _memory_cells(record: Record, ours: Record | None, missing: str) -> list[str]:
    if record.memory is None:
        return [missing] * 3
    own = without_weight_grad(record)
    of_ours = without_weight_grad(ours) if ours is not None else None
    return [f"{record.memory / MB:.0f}", f"{(own or 0) / MB:.0f}", _ratio(own, of_ours)]


def without_weight_grad(record: Record) -> int | None:
    """Bytes added beyond the gradient of the head."""
    return None if record.memory is None else record.memory - record.case.weight_grad_bytes


def _missing(record: Record) -> str:
    return "OOM" if record.note.startswith(OUT_OF_MEMORY) else "–"


def _ratio(value: float | None, base: float | None) -> str:
    return f"{value / base:.2f}" if value is not None and base else "–"


def _error(value: float | None, missing: str) -> str:
    return missing if value is None else f"{value:.1e}"


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]
