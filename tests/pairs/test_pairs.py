"""Whole builds with the tiny model: rows that an independent checker approves, and real kills."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from prefkit.critical_tokens import weigh
from prefkit.data import ReadOptions, prepare_pairs
from prefkit.demo import arithmetic as world
from prefkit.errors import ConfigError, PrefkitError
from prefkit.pairs.run.build import build, evaluate
from tests.pairs.pair_checker import faults

ROOT = Path(__file__).parents[2]
MODEL = str(ROOT / "prefkit" / "demo" / "assets" / "model")
QUESTIONS = str(ROOT / "examples" / "tiny_model" / "questions")
SMALL: dict[str, Any] = {"max_questions": 24, "max_tokens": 56, "batch_size": 64}
LOOSE: dict[str, dict[str, Any]] = {
    "dpo": {},
    "step-dpo": {"samples": 4, "temperature": 1.0, "top_p": 1.0, "rectifications": 8},
    "scdpo": {"samples": 4, "max_samples": 16},
    "cdpo": {"samples": 16, "temperature": 1.0, "contrast_adapter": "none"},
}


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("method", ["dpo", "step-dpo", "scdpo"])
def test_every_row_is_what_it_should_be(tmp_path: Path, method: str) -> None:
    result = build(method, QUESTIONS, model=MODEL, out=str(tmp_path), **SMALL, **LOOSE[method])
    rows = read(result.rows)
    assert len(rows) == result.count == result.manifest["rows"] >= 12
    assert [(row["id"], faults(method, row)) for row in rows if faults(method, row)] == []
    assert len({row["id"] for row in rows}) == len(rows)
    if method == "scdpo":
        assert {row["kind"] for row in rows} == {"naive", "step-controlled"}
    counts = result.manifest["counts"]
    program = "read by program: the steps of an expression can be followed"
    if method == "step-dpo":  # the default localiser: every one by the program, none sampled for
        assert counts[f"wrong solutions {program}"] == counts["mistakes located"]
        assert "rollouts sampled" not in counts
    assert not [name for name in counts if " read by " in name and not name.endswith(program)]


def test_one_file_of_step_pairs_serves_three_trainings(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    rows = build(
        "step-dpo", QUESTIONS, model=MODEL, out=str(tmp_path), **SMALL, **LOOSE["step-dpo"]
    ).rows
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    pairs = read(rows)
    steps = prepare_pairs(str(rows), tokenizer, reading=ReadOptions(level="step"))
    whole = prepare_pairs(str(rows), tokenizer, reading=ReadOptions(level="solution"))
    for row, (_, step), (_, solution) in zip(pairs, steps, whole, strict=True):
        assert step.chosen.scored.sum() == len(row["chosen"])  # one token a character, no end
        assert solution.chosen.scored.sum() == len(row["full_chosen"]) + 1
        assert not step.chosen.eos
        assert solution.rejected.eos


def test_the_counts_of_the_manifest_add_up(tmp_path: Path) -> None:
    manifest = build("dpo", QUESTIONS, model=MODEL, out=str(tmp_path), **SMALL).manifest
    counts, drops = manifest["counts"], manifest["drops"]
    assert counts["solutions sampled"] == 24 * 8
    parts = [counts.get(f"solutions {kind}", 0) for kind in ("right", "wrong", "unfinished")]
    assert sum(parts) == 24 * 8
    dropped = sum(n for name, n in drops.items() if name.startswith("questions:"))
    assert manifest["rows"] + dropped == 24
    assert manifest["state"] == "done"
    assert manifest["options"]["seed"] == 0


def test_a_finished_build_is_not_done_again_and_other_options_are_refused(tmp_path: Path) -> None:
    first = build("dpo", QUESTIONS, model=MODEL, out=str(tmp_path), **SMALL)
    before = first.rows.stat().st_mtime_ns
    again = build("dpo", QUESTIONS, model=MODEL, out=str(tmp_path), **SMALL)
    assert again.manifest == first.manifest
    assert first.rows.stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match="samples 8, now it is 4"):
        build("dpo", QUESTIONS, model=MODEL, out=str(tmp_path), samples=4, **SMALL)


def test_another_seed_gives_other_pairs_and_the_same_seed_the_same(tmp_path: Path) -> None:
    small = {**SMALL, "max_questions": 8}
    texts = [
        build(
            "dpo", QUESTIONS, model=MODEL, out=str(tmp_path / name), seed=seed, **small
        ).rows.read_text()
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert texts[0] == texts[1] != texts[2]


def test_greedy_accuracy_is_that_of_the_demo(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from prefkit.demo.evaluate import evaluate as evaluate_demo

    found = evaluate(QUESTIONS, model=MODEL, out=str(tmp_path), max_questions=100, max_tokens=56)
    problems = [world.parse_prompt(row["prompt"]) for row in read(tmp_path / "solutions.jsonl")]
    model = AutoModelForCausalLM.from_pretrained(MODEL)
    demo = evaluate_demo(model, AutoTokenizer.from_pretrained(MODEL), problems)
    assert found["accuracy"] == demo.accuracy


def test_no_pair_at_all_is_an_error_that_says_why(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text('{"question": "11+1+1+1+1+1+1=\\n", "answer": "a word"}\n')
    with pytest.raises(PrefkitError, match=r"not one pair .* all wrong \(1\)"):
        build("dpo", str(path), model=MODEL, out=str(tmp_path / "out"), max_tokens=56)


# -- real kills --------------------------------------------------------------------------------


def command(out: Path, *flags: str) -> list[str]:
    small = ["--max_questions", "60", "--max_tokens", "56", "--batch_size", "8"]
    loose = ["--samples", "4", "--temperature", "1", "--top_p", "1", "--rectifications", "8"]
    head = [sys.executable, "-m", "prefkit", "build", "step-dpo", QUESTIONS, "--model", MODEL]
    return [*head, "--out", str(out), *small, *loose, *flags]


def kill_when(argv: list[str], journal: Path, lines: int) -> bool:
    """Starts a command and kills it with -9 once a file has so many lines; False = it ended."""
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    try:
        while time.monotonic() < until:
            if process.poll() is not None:
                return False
            if journal.exists() and journal.read_bytes().count(b"\n") >= lines:
                process.send_signal(signal.SIGKILL)
                return True
            time.sleep(0.01)
        raise AssertionError("the build neither went on nor ended")
    finally:
        process.kill()
        process.wait(timeout=20)


@pytest.mark.slow
def test_three_kills_change_nothing(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(whole), check=True, timeout=240, capture_output=True)
    total = len(read(whole / "completions.jsonl"))
    for part in (0.1, 0.45, 0.8):
        assert kill_when(command(killed), killed / "completions.jsonl", int(part * total))
        with open(killed / "completions.jsonl", "ab") as file:
            file.write(b'{"key": "torn by the')  # what a kill in the middle of a write leaves
    done = subprocess.run(command(killed), timeout=240, capture_output=True, text=True, check=True)
    assert "questions are done already" in done.stderr
    assert (killed / "pairs.jsonl").read_bytes() == (whole / "pairs.jsonl").read_bytes()
    keys = [line["key"] for line in read(killed / "completions.jsonl")]
    assert len(keys) == len(set(keys)) == total
    manifests = [json.loads((out / "manifest.json").read_text()) for out in (whole, killed)]
    assert manifests[0]["counts"] == manifests[1]["counts"]
    assert len(manifests[1]["runs"]) == 4


# -- shards, and the stages of cDPO ------------------------------------------------------------


def test_joined_shards_are_the_whole_build_and_cdpo_weighs_them(tmp_path: Path) -> None:
    options = {**SMALL, "max_questions": None, **LOOSE["cdpo"], "samples": 8}
    path = tmp_path / "q.jsonl"
    path.write_text("".join(Path(QUESTIONS, "a.jsonl").read_text().splitlines(True)[:16]))

    def run(name: str, **more: Any) -> Any:
        common = {"model": MODEL, "out": str(tmp_path / name), **options}
        return build("cdpo", str(path), **common, last_stage=weigh, **more)

    with pytest.raises(ConfigError, match=r"last_stage=prefkit\.critical_tokens\.weigh"):
        build("cdpo", str(path), model=MODEL, out=str(tmp_path / "none"), **options)
    assert not (tmp_path / "none").exists()

    whole = run("whole")
    parts = [run(f"part{i}", shard=f"{i}/2") for i in (1, 2)]
    assert all(part.manifest["weighted"] is False for part in parts)
    assert "rejected_weights" not in read(parts[0].rows)[0]
    joined = run("joined", join=[str(tmp_path / "part1"), str(tmp_path / "part2")])
    assert joined.manifest["counts"] == whole.manifest["counts"]
    assert [row["id"] for row in read(joined.rows)] == [row["id"] for row in read(whole.rows)]
    for ours, theirs in zip(read(joined.rows), read(whole.rows), strict=True):
        assert faults("cdpo", ours) == []
        assert ours["rejected_weights"] == theirs["rejected_weights"]
        assert len(ours["rejected_weights"]["ids"]) == len(ours["rejected"])  # a token a character
        assert all(0 <= weight <= 1 for weight in ours["rejected_weights"]["weights"])
    assert joined.manifest["contrast"]["positive"]["rows"] > 4


def test_a_shard_of_other_options_is_not_joined(tmp_path: Path) -> None:
    small = {**SMALL, "max_questions": 4}
    build("dpo", QUESTIONS, model=MODEL, out=str(tmp_path / "a"), samples=4, **small)
    with pytest.raises(ConfigError, match="built with samples 4, here it is 8"):
        build(
            "dpo",
            QUESTIONS,
            model=MODEL,
            out=str(tmp_path / "b"),
            join=[str(tmp_path / "a")],
            **small,
        )


def test_rollouts_find_the_step_from_end_to_end(tmp_path: Path) -> None:
    small = {**SMALL, "max_questions": 8}
    given = {**small, **LOOSE["step-dpo"], "localiser": "rollouts", "process_filter": "program"}
    rows = read(build("step-dpo", QUESTIONS, model=MODEL, out=str(tmp_path), **given).rows)
    assert rows
    agreed = [not faults("step-dpo", row) for row in rows]
    assert sum(agreed) >= len(agreed) / 2  # a guess by sampling, unlike the program's
    keys = [line["key"] for line in read(tmp_path / "completions.jsonl")]
    assert len(keys) == len(set(keys))


def test_a_localiser_of_ones_own_is_asked_and_checked(tmp_path: Path) -> None:
    given = {**SMALL, "max_questions": 6, **LOOSE["step-dpo"]}
    name = "tests.pairs.test_pairs:true_step"
    result = build(
        "step-dpo", QUESTIONS, model=MODEL, out=str(tmp_path / "a"), localiser=name, **given
    )
    assert [faults("step-dpo", row) for row in read(result.rows)] == [[]] * result.count
    with pytest.raises(ConfigError, match="gave 99 for a solution of"):
        build(
            "step-dpo",
            QUESTIONS,
            model=MODEL,
            out=str(tmp_path / "b"),
            localiser="tests.pairs.test_pairs:nonsense",
            **given,
        )
    with pytest.raises(ConfigError, match="cannot be imported"):
        build("step-dpo", QUESTIONS, model=MODEL, out=str(tmp_path / "c"), localiser="no:where")


def true_step(question: str, steps: list[str], solution: str | None) -> int | None:
    """The first wrong step of the tiny world, for a solution that does not stop short."""
    first = world.check(world.parse_prompt(question), "".join(steps)).first_wrong
    return first if first is not None and first < len(steps) else None


def nonsense(question: str, steps: list[str], solution: str | None) -> int:
    return 99
