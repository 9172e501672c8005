"""What became of the rows: counts, token totals, and a file that lists every skipped or cut row."""

import json
import os
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from prefkit.data.pair import TokenizedPair
from prefkit.errors import RowError
from prefkit.files.atomic import replace_file


@dataclass(frozen=True)
class Incident:
    """A row that was skipped or cut: where it was, and why."""

    source: str
    row: int
    field: str
    problem: str
    action: str = "skipped"

    @classmethod
    def of(cls, error: RowError, action: str = "skipped") -> "Incident":
        return cls(error.source, error.row, error.field, error.problem, action)


@dataclass
class DataReport:
    """What `prepare_pairs` did.

    Attributes:
        sources: name → rows in it. Most rows are one pair; a row of the TDPO layout, or with
            several rejected responses, may be several.
        pairs: pairs in the dataset.
        chats: those of them that a chat template wrote.
        skipped: reason ("too long", or the field at fault) → pairs skipped for it.
        truncated: pairs of which one response or both lost their end.
        tokens: all tokens of all sequences.
        scored: scored tokens by response, those of weight 0 included.
        weighted_rows: pairs that have a scored token with another weight than 1.
        zero_weight: scored tokens of weight 0: they count in no loss.
        shared: tokens of the common prefixes, counted once a pair.
        longest: tokens of the longest sequence.
        eos: sequences that end with a scored end-of-sequence token.
        unknown: tokens that are the tokenizer's unknown token: their characters are lost.
        fingerprint: hex digest over ids, flags and weights of every pair in order.
        incidents: every skipped or cut row.
        skipped_file: where the incidents were written, or None.
    """

    sources: dict[str, int] = field(default_factory=dict)
    pairs: int = 0
    chats: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    truncated: int = 0
    tokens: int = 0
    scored: dict[str, int] = field(default_factory=lambda: {"chosen": 0, "rejected": 0})
    weighted_rows: int = 0
    zero_weight: int = 0
    shared: int = 0
    longest: int = 0
    eos: int = 0
    unknown: int = 0
    fingerprint: str = ""
    incidents: list[Incident] = field(default_factory=list)
    skipped_file: str | None = None

    def count(self, pair: TokenizedPair, unknown_id: int | None = None) -> None:
        """Add one pair to the totals."""
        self.pairs += 1
        self.shared += pair.shared
        sides = (pair.chosen, pair.rejected)
        self.weighted_rows += any(bool((s.weights[s.scored] != 1).any()) for s in sides)
        for name, side in (("chosen", pair.chosen), ("rejected", pair.rejected)):
            self.tokens += len(side.ids)
            self.scored[name] += int(side.scored.sum())
            self.zero_weight += int((side.weights[side.scored] == 0).sum())
            self.longest = max(self.longest, len(side.ids))
            self.eos += side.eos
            if unknown_id is not None:
                self.unknown += int((side.ids == unknown_id).sum())

    def skip(self, reason: str, error: RowError) -> None:
        self.skipped[reason] += 1
        self.incidents.append(Incident.of(error))

    @property
    def shared_fraction(self) -> float:
        """Share of all tokens that are computed twice when a pair's prefix is not shared."""
        return 2 * self.shared / self.tokens if self.tokens else 0.0

    def summary(self) -> str:
        """A few lines for people."""
        rows = ", ".join(f"{count} rows of {name}" for name, count in self.sources.items())
        lines = [
            f"{self.pairs} pairs from {rows}",
            f"{self.tokens} tokens, longest sequence {self.longest}; scored: "
            f"{self.scored['chosen']} chosen, {self.scored['rejected']} rejected"
            + (f" ({self.zero_weight} of them with weight 0); " if self.zero_weight else "; ")
            + f"{self.shared_fraction:.0%} of the tokens lie in prefixes that both sides share",
        ]
        lines += two_forms(self.chats, self.pairs, "pairs")
        lines.append(f"{self.weighted_rows} pairs have token weights other than 1")
        if self.skipped:
            reasons = ", ".join(f"{reason} ({n})" for reason, n in self.skipped.most_common())
            lines.append(f"{self.skipped.total()} skipped: {reasons}")
        if self.unknown:
            lines.append(f"{self.unknown} tokens are unknown to the tokenizer: characters are lost")
        if self.truncated:
            lines.append(f"{self.truncated} pairs had the end of a solution cut off")
        if self.incidents and self.skipped_file:
            lines.append(f"listed in {self.skipped_file}")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Everything but the list of incidents, for JSON."""
        fields = asdict(self)
        fields.pop("incidents")
        return {**fields, "skipped": dict(self.skipped)}


def two_forms(chats: int, count: int, what: str) -> list[str]:
    """A line where some rows are chats and some plain text, which the model has to distinguish."""
    if not 0 < chats < count:
        return []
    return [
        f"{chats} {what} are written by the chat template, {count - chats} are plain text "
        "(string_prompts: chat gives all one form)"
    ]


def write_incidents(path: str | os.PathLike[str], incidents: list[Incident]) -> None:
    """One JSON object a line (source, row, field, problem, action); written whole or not at all.

    Without incidents there is no file: a list left by an earlier run would speak of other data.
    """
    path = Path(path)
    if not incidents:
        path.unlink(missing_ok=True)
        return
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")  # ranks may write side by side
    lines = (json.dumps(asdict(incident), ensure_ascii=False) + "\n" for incident in incidents)
    temporary.write_text("".join(lines), encoding="utf-8")
    replace_file(temporary, path)
