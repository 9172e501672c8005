"""The papers' orderings as statements that the numbers confirm, contradict or leave open.

No conclusion is written down here: a statement names two methods and a direction, and what is said
of it follows from the paired 95 % interval over seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmarks.papers.findings import Findings, label
from benchmarks.papers.methods import START
from benchmarks.papers.statistics import Interval, t_quantile

WORDS = {1: "**reproduced**", -1: "**contradicted**", 0: "**not reproduced** (undecided)"}


@dataclass(frozen=True)
class Claim:
    """`better` has the higher accuracy than `worse` (or, of `metric` "kl", the lower KL).

    Attributes:
        source: where it is said, with the published figures.
    """

    source: str
    better: str
    worse: str
    metric: str = "accuracy"

    def applies(self, findings: Findings) -> bool:
        return self.better in findings.values and self.worse in findings.values


CLAIMS = (
    Claim("Step-DPO, MATH 55.0 → 55.8 (7B), 62.5 → 64.1 (72B)", "step-dpo", "dpo"),
    Claim("Step-DPO, the same tables, SFT 54.8 → 55.8 and 61.7 → 64.1", "step-dpo", "sft-own"),
    Claim("SCDPO, GSM8K 79.0 → 80.1, MATH 45.7 → 47.7 (Mistral)", "scdpo", "dpo"),
    Claim("cDPO, GSM8K 70.5 → 77.2, MATH500 29.4 → 33.4", "cdpo", "dpo"),
    Claim("cDPO, RPO 75.4 → 77.2, 32.3 → 33.4", "cdpo", "rpo"),
    Claim("cDPO, SFT + TDPO 71.7 → 77.2, 30.8 → 33.4", "cdpo", "tdpo2"),
    Claim("cDPO, the same figures; this is the loss of its released code", "cdpo-position", "dpo"),
    Claim("TDPO, HH accuracy 59.4 → 67.3, from secondary text", "tdpo2", "dpo"),
    Claim("TDPO, TDPO2 above TDPO1, 60.1 → 67.3, from secondary text", "tdpo2", "tdpo1"),
    Claim("TDPO, a lower sequential KL than DPO", "tdpo2 as dpo", "dpo", "kl"),
    Claim("TDPO, TDPO1 as well", "tdpo1 as dpo", "dpo", "kl"),
    Claim("Step-DPO, fine-tuning on equal data, MATH 54.8 → 55.0", "dpo", "sft-own"),
)


def sign(claim: Claim, difference: Interval) -> int:
    """1 where the interval is all on the claimed side, −1 on the other, 0 where it holds 0."""
    return -difference.sign if claim.metric == "kl" else difference.sign


def verdict(claim: Claim, findings: Findings) -> str:
    """One line: what the numbers say of a claim, and what makes the comparison unequal."""
    difference = findings.difference(claim.better, claim.worse, claim.metric)
    word = WORDS[sign(claim, difference)]
    if claim.metric == "kl":
        lower = findings.lower_in(claim.better, claim.worse, "kl")
        size = f"{difference.mean:+.3f} ± {difference.half:.3f} nats a solution"
        size += f", lower in {lower} of {len(findings.seeds)} seeds"
    else:
        size = f"{100 * difference.mean:+.1f} ± {100 * difference.half:.1f} points"
    line = f"- {_statement(claim)}: {word}: {size}. Published: {claim.source}."
    unequal = _unequal(claim, findings)
    return f"{line} {unequal}" if unequal else line


def verdicts(findings: Findings, seen_before: Sequence[int] = ()) -> str:
    """All claims that the regime's methods can speak to, and how far such a list is to be trusted.

    Args:
        seen_before: seeds that trials had looked at; the verdicts are given without them as well.
    """
    claims = [claim for claim in CLAIMS if claim.applies(findings)]
    lines = [verdict(claim, findings) for claim in claims]
    lines.append("\n" + multiplicity(claims, findings))
    if set(seen_before) & set(findings.seeds):
        lines.append("\n" + _without(claims, findings, seen_before))
    return "\n".join(lines)


def acceptance(findings: Findings) -> str:
    """Whether every trained method beats the start, and TDPO2's KL against DPO's, by count."""
    found = {
        name: findings.difference(name, START)
        for name in findings.values
        if name != START and " as " not in name
    }
    above = sum(difference.sign > 0 for difference in found.values())
    others = [
        f"{label(name)} ({100 * difference.mean:+.1f} ± {100 * difference.half:.1f} points)"
        for name, difference in found.items()
        if difference.sign <= 0
    ]
    line = f"- Above the start with the whole 95 % interval: {above} of {len(found)} methods"
    lines = [line + (f"; **not**: {', '.join(others)}." if others else ".")]
    if "sft-reference" in found:
        lines[0] += (
            f" Not on equal terms: {label('sft-reference')} is given right solutions that no other "
            "method sees."
        )
    same = "tdpo2 as dpo"
    if same in findings.values and "dpo" in findings.values:
        lower, count = findings.lower_in(same, "dpo", "kl"), len(findings.seeds)
        lines.append(f"- {label(same)} has a lower KL than DPO in {lower} of {count} seeds.")
    else:
        lines.append("- TDPO2 was not run at DPO's settings in this regime.")
    return "\n".join(lines)


def multiplicity(claims: Sequence[Claim], findings: Findings) -> str:
    """How many verdicts chance alone would give, and which stand intervals for all together."""
    count, seeds = len(claims), len(findings.seeds)
    text = (
        f"{count} claims are tested, without correction for their number: at 95 %, "
        f"{0.05 * count:.1f} of their intervals would be expected not to hold 0 if no method "
        f"differed from another, half of these in favour of the paper. "
    )
    if seeds < 2 or not claims:
        return text.strip()
    wider = t_quantile(1 - 0.025 / count, seeds - 1) / t_quantile(0.975, seeds - 1)
    kept = {1: 0, -1: 0, 0: 0}
    for claim in claims:
        found = findings.difference(claim.better, claim.worse, claim.metric)
        kept[sign(claim, replace(found, half=wider * found.half))] += 1
    return text + (
        f"With intervals wide enough for all of them together (Bonferroni), {kept[1]} would be "
        f"reproduced, {kept[-1]} contradicted, {kept[0]} undecided."
    )


def _without(claims: Sequence[Claim], findings: Findings, left_out: Sequence[int]) -> str:
    rest = findings.without(left_out)
    named = " and ".join(map(str, sorted(set(left_out) & set(findings.seeds))))
    text = f"Without seed {named}, which trials had looked at"
    if not rest.seeds:
        return f"{text}, nothing is left."
    text += f" ({len(rest.seeds)} left, so the intervals are wider)"
    changed = []
    for claim in claims:
        before, after = (
            WORDS[sign(claim, f.difference(claim.better, claim.worse, claim.metric))]
            for f in (findings, rest)
        )
        if before != after:
            changed.append(f"{_statement(claim)}: {after}")
    if not changed:
        return f"{text}, every verdict stays as it is."
    return f"{text}, {len(changed)} of {len(claims)} verdicts change: {'; '.join(changed)}."


def _statement(claim: Claim) -> str:
    relation = "lower KL than" if claim.metric == "kl" else "above"
    return f"{label(claim.better)} {relation} {label(claim.worse)}"


def _unequal(claim: Claim, findings: Findings) -> str:
    """What one side of a claim is given and the other is not."""
    names = {name.partition(" as ")[0] for name in (claim.better, claim.worse)}
    if "step-dpo" not in names:
        return ""
    other = label(next(iter(names - {"step-dpo"})))
    if findings.regime.grader is None:
        return f"Step-DPO is told the first wrong step by an exact program; {other} is not."
    return (
        "**Not on equal terms**: Step-DPO's localiser and filter know the truth here; the labels "
        f"of {other} come from the weak verifier."
    )
