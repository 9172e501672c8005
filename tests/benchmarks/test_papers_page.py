"""What the page of papers says, from made-up numbers: verdicts, their worth, settings."""

import math

import pytest

from benchmarks.papers import settings as chosen_settings
from benchmarks.papers.claims import CLAIMS, Claim, acceptance, multiplicity, verdict, verdicts
from benchmarks.papers.findings import Findings
from benchmarks.papers.journal import Journal
from benchmarks.papers.methods import METHODS, REGIMES, Setting
from benchmarks.papers.runs import Comparison, attempt_key
from benchmarks.papers.settings import at_edge, span
from benchmarks.papers.statistics import standard_error
from benchmarks.papers.tasks import Size

HIGH, LOW, MIXED = [0.80, 0.82, 0.81, 0.83], [0.70, 0.72, 0.71, 0.73], [0.60, 0.85, 0.70, 0.75]
WORDS = ("**reproduced**", "**contradicted**", "**not reproduced** (undecided)")
TWO = Claim("source", "step-dpo", "dpo")


def _findings(regime: str = "main", **accuracies: list[float]) -> Findings:
    """Made-up accuracies by method (_ for - and space); kl is ten times as much."""
    values = {
        name.replace("__", " ").replace("_", "-"): {"accuracy": a, "kl": [10 * x for x in a]}
        for name, a in accuracies.items()
    }
    count = len(next(iter(accuracies.values())))
    return Findings(REGIMES[regime], tuple(range(count)), values, [])


def _word(line: str) -> str:
    """The one verdict of a line."""
    (word,) = [word for word in WORDS if word in line]
    return word


@pytest.mark.parametrize(
    ("step", "dpo", "size", "word"),
    [  # 0.1 apart but for a little; t(0.975, 3) is 3.18
        (HIGH, [0.70, 0.71, 0.71, 0.74], "+10.0 ± 1.3 points", WORDS[0]),
        (LOW, [0.80, 0.81, 0.81, 0.84], "-10.0 ± 1.3 points", WORDS[1]),
        (MIXED, LOW, "+1.0 ± 15.1 points", WORDS[2]),
    ],
)
def test_each_verdict_follows_from_the_interval(step, dpo, size, word):
    line = verdict(TWO, _findings(step_dpo=step, dpo=dpo))
    assert _word(line) == word
    assert size in line


def test_a_lower_kl_reproduces_a_claim_about_kl():
    claim = Claim("source", "step-dpo", "dpo", "kl")
    jitter = [0.7, 0.7, 0.69, 0.71]
    for ours, theirs, word, lower in (
        (jitter, HIGH, WORDS[0], 4),
        (HIGH, jitter, WORDS[1], 0),
        (MIXED, LOW, WORDS[2], 2),
    ):
        line = verdict(claim, _findings(step_dpo=ours, dpo=theirs))
        assert _word(line) == word
        assert f"lower in {lower} of 4 seeds" in line


def test_one_seed_decides_nothing():
    assert _word(verdict(TWO, _findings(step_dpo=[0.9], dpo=[0.1]))) == WORDS[2]


def test_lines_about_step_dpo_say_what_only_it_is_told():
    numbers = {"sft_own": LOW, "dpo": LOW, "step_dpo": HIGH, "tdpo2": LOW, "cdpo": MIXED}
    for regime, said in (("weak", "Not on equal terms"), ("main", "told the first wrong step")):
        lines = verdicts(_findings(regime, **numbers)).splitlines()
        lines = [line for line in lines if line.startswith("- ")]
        about = [line for line in lines if "Step-DPO above" in line]
        assert len(about) == 2
        assert all(said in line for line in about)
        assert not any(said in line for line in lines if line not in about)


def test_what_was_asked_names_the_methods_that_failed():
    found = _findings(start=LOW, dpo=HIGH, tdpo2=MIXED, tdpo2__as__dpo=[0.7, 0.9, 0.7, 0.9])
    asked = acceptance(found)
    assert "1 of 2 methods; **not**: TDPO2 (" in asked
    assert "lower KL than DPO in 2 of 4 seeds" in asked
    better = [a + 0.05 + 0.001 * i for i, a in enumerate(LOW)]
    all_above = acceptance(_findings(start=LOW, dpo=HIGH, sft_reference=better))
    assert "2 of 2 methods." in all_above
    assert "SFT on gold solutions is given right solutions" in all_above
    assert "not run at DPO's settings" in all_above


def test_chance_is_counted_and_many_claims_widen_the_intervals():
    # differences 0.05, 0.07, 0.09, 0.11: 0.08 ± 3.18·0.0129 = ± 0.041; for 12 together t is 6.6
    ours = [a + 0.05 + 0.02 * i for i, a in enumerate(LOW)]
    found = _findings(step_dpo=ours, dpo=LOW)
    assert _word(verdict(TWO, found)) == WORDS[0]
    one, twelve = multiplicity([TWO], found), multiplicity([TWO] * 12, found)
    assert "1 would be reproduced, 0 contradicted, 0 undecided" in one
    assert "0.6 of their intervals" in twelve
    assert "0 would be reproduced, 0 contradicted, 12 undecided" in twelve


def test_verdicts_are_given_without_seeds_that_were_looked_at():
    ours = [0.75, 0.60, 0.76, 0.78]  # −0.12 in seed 1
    text = verdicts(_findings(step_dpo=ours, dpo=LOW), seen_before=(1,))
    assert _word(text.splitlines()[0]) == WORDS[2]
    assert "Without seed 1" in text
    assert "(3 left" in text
    assert "1 of 1 verdicts change: Step-DPO above DPO: **reproduced**" in text
    assert "every verdict stays" in verdicts(_findings(step_dpo=HIGH, dpo=MIXED), (1,))
    assert "Without" not in verdicts(_findings(step_dpo=HIGH, dpo=MIXED), (9,))


def test_every_claim_is_about_methods_that_run():
    extra = {f"{name} as {like}" for name, like in REGIMES["main"].extra}
    for claim in CLAIMS:
        assert {claim.better, claim.worse} <= {*METHODS, *extra}


# ---------------------------------------------------------------------------------------- settings


def test_an_edge_is_named_for_the_rate_and_for_beta():
    grid = METHODS["dpo"].grid
    assert at_edge(Setting(1.2e-4, 0.3), grid) == ""
    assert at_edge(Setting(1.2e-4, 0.03), grid) == "at the lowest β tried"
    assert at_edge(Setting(6e-5, 0.3), grid) == "at the lowest learning rate tried"
    both = "at the highest learning rate tried, at the highest β tried"
    assert at_edge(Setting(2.4e-4, 1.0), grid) == both
    supervised = METHODS["sft-own"].grid
    assert at_edge(supervised[-1], supervised) == "at the highest learning rate tried"
    assert at_edge(supervised[5], supervised) == ""
    assert at_edge(grid[0], grid[:1]) == ""  # a single point has no edge


def test_the_span_of_a_grid():
    assert span(METHODS["sft-own"].grid) == "12 learning rates over a factor of 250"
    words = "3 learning rates over a factor of 4 × 4 values of β over a factor of 33.3"
    assert span(METHODS["dpo"].grid) == words
    assert span(METHODS["dpo"].grid[:1]) == "1 learning rate × 1 β"


def test_the_standard_error_of_an_accuracy():
    assert standard_error(0.5, 600) == pytest.approx(math.sqrt(0.25 / 600))
    assert standard_error(0.9, 600) == pytest.approx(math.sqrt(541 * 61 / 600) / 602)
    assert 0 < standard_error(1.0, 600) < 0.005


def test_the_table_says_how_many_settings_the_noise_cannot_tell_apart(tmp_path):
    regime = REGIMES["main"]
    comparison = Comparison((regime, REGIMES["weak"]), Size(), tmp_path)
    journal = Journal(tmp_path / "journal.jsonl", {})
    for name in regime.methods:
        for i, setting in enumerate(METHODS[name].grid):
            # 70 % at the tenth point (of dpo: the highest rate, β 0.1); 69, 67 and 60 below. The
            # standard error of 70 % of 800 is 1.6 points: one other lies within it, is gentler, and
            # is chosen.
            accuracy = {9: 0.70, 3: 0.69, 4: 0.67}.get(i, 0.60)
            for seed, shift in ((100, 0.02), (101, -0.02)):
                key = attempt_key("main", name, setting, seed)
                journal.add({"key": key, "accuracy": accuracy + shift})
    text = chosen_settings.settings(comparison, regime, journal)
    row = next(line for line in text.splitlines() if line.startswith("| DPO |"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1:] == [
        "lr 6e-05, β 1",
        "69.0 (71.0, 67.0)",
        "70.0",
        "1.6",
        "60.0 – 70.0",
        "1 of 11 others",
        "at the lowest learning rate tried, at the highest β tried",
    ]
    assert "fine-tuning: 12 learning rates over a factor of 250" in text
    assert "differ by 4.0 points from start to start" in text
    weak = chosen_settings.settings(comparison, REGIMES["weak"], journal)
    assert "nothing was tuned here" in weak
