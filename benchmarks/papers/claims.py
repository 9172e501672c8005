"""The papers' orderings as statements that the numbers confirm, contradict or leave open.

No conclusion is written down here: a statement names two methods and a direction, and what is said
of it follows from the paired 95 % interval over seeds.
"""

from dataclasses import dataclass

from benchmarks.papers.findings import Findings, label
from benchmarks.papers.methods import START


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
    Claim("Step-DPO, the same tables, SFT 54.8 and 61.7", "step-dpo", "sft-own"),
    Claim("SCDPO, GSM8K 79.0 → 80.1, MATH 45.7 → 47.7 (Mistral)", "scdpo", "dpo"),
    Claim("cDPO, GSM8K 70.5 → 77.2, MATH500 29.4 → 33.4", "cdpo", "dpo"),
    Claim("cDPO, RPO 75.4 and 32.3", "cdpo", "rpo"),
    Claim("cDPO, SFT + TDPO 71.7 and 30.8", "cdpo", "tdpo2"),
    Claim("cDPO's released code in place of its equation", "cdpo-position", "dpo"),
    Claim("TDPO, HH accuracy 59.4 → 67.3", "tdpo2", "dpo"),
    Claim("TDPO: TDPO2 above TDPO1, 60.1 → 67.3", "tdpo2", "tdpo1"),
    Claim("TDPO: a lower sequential KL than DPO", "tdpo2 as dpo", "dpo", "kl"),
    Claim("TDPO: TDPO1 as well", "tdpo1 as dpo", "dpo", "kl"),
    Claim("DPO above fine-tuning on equal data, MATH 54.8 → 55.0 (Step-DPO)", "dpo", "sft-own"),
)


def verdict(claim: Claim, findings: Findings) -> str:
    """One line: what the numbers say of a claim."""
    difference = findings.difference(claim.better, claim.worse, claim.metric)
    sign = -difference.sign if claim.metric == "kl" else difference.sign
    word = {1: "**reproduced**", -1: "**contradicted**", 0: "**not reproduced** (undecided)"}[sign]
    if claim.metric == "kl":
        lower = findings.lower_in(claim.better, claim.worse, "kl")
        size = f"{difference.mean:+.3f} ± {difference.half:.3f} nats a solution"
        size += f", lower in {lower} of {len(findings.seeds)} seeds"
    else:
        size = f"{100 * difference.mean:+.1f} ± {100 * difference.half:.1f} points"
    relation = "lower KL than" if claim.metric == "kl" else "above"
    return (
        f"- {label(claim.better)} {relation} {label(claim.worse)}: {word}: {size}. "
        f"({claim.source}.)"
    )


def verdicts(findings: Findings) -> str:
    """All claims that the regime's methods can speak to, and whether training helped at all."""
    lines = [_over_start(findings)]
    lines += [verdict(claim, findings) for claim in CLAIMS if claim.applies(findings)]
    return "\n".join(lines)


def _over_start(findings: Findings) -> str:
    signs = {
        name: findings.difference(name, START).sign
        for name in findings.values
        if name != START and " as " not in name
    }
    lifted = [name for name, sign in signs.items() if sign > 0]
    line = f"- {len(lifted)} of {len(signs)} methods beat the start with their interval above 0"
    others = [label(name) for name in signs if name not in lifted]
    return line + (f"; not so: {', '.join(others)}." if others else ".")
