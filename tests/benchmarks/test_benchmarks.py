"""The benchmarks compare like with like: one loss, one limit, and nothing silently missing."""

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import memory
from benchmarks.gemms import products, whole_products
from benchmarks.measure import Record, measure
from benchmarks.problems import Case, Problem, build
from benchmarks.questions import FILES, Group, Question, load, tiny
from benchmarks.results import Results
from benchmarks.run import main, run
from benchmarks.table import case_table, share_of_products
from benchmarks.truth import Found, errors, truth
from benchmarks.ways import WAYS, Outcome, Unavailable, Way
from benchmarks.ways.base import objective
from prefkit import fused_preference_loss

ROOT = Path(__file__).parents[2]
DPO = Case(loss="dpo", tokens=64, dim=32, vocab=301)
TDPO2 = replace(DPO, loss="tdpo2")
CASES = (
    DPO,
    TDPO2,
    replace(DPO, frozen=True),
    replace(TDPO2, pairs=4),
    replace(DPO, masked=0.75),
    replace(TDPO2, masked=0.75, pairs=2),
    replace(DPO, frozen=True, cached_ref=True),
)
# fp32 rounding; a small KL is a difference of large numbers for those who compute it so.
BOUNDS = {"loss": 2e-5, "logp": 1e-6, "kl": 1e-3, "d_hidden": 2e-5, "d_weight": 2e-5}


def found(way: Way, problem: Problem) -> Found:
    outcome = way.ready(problem)()
    assert outcome is not None
    return Found(outcome.loss, outcome.logp, outcome.kl, problem.hidden.grad, problem.weight.grad)


def check(name: str, case: Case) -> None:
    problem = build(case)
    expected = truth(problem)
    try:
        wrong = errors(found(WAYS[name], problem), expected, problem.scored)
    except Unavailable as reason:
        pytest.skip(str(reason))
    assert {"loss", "d_hidden"} <= wrong.keys()
    assert ("d_weight" in wrong) is not case.frozen
    for quantity, error in wrong.items():
        assert error < BOUNDS[quantity], quantity


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
@pytest.mark.parametrize(
    "name", [n for n, way in WAYS.items() if way.backward and not way.compiled]
)
def test_a_way_computes_the_loss_and_gradients_of_the_definition(name: str, case: Case) -> None:
    check(name, case)


@pytest.mark.parametrize("name", [n for n, way in WAYS.items() if way.compiled])
def test_so_does_a_compiled_one(name: str) -> None:
    check(name, replace(DPO, pairs=2, masked=0.25))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_the_truth_is_that_of_the_unfused_definition(case: Case) -> None:
    problem = build(replace(case, dtype="float64", cached_ref=False))
    stream = (problem.hidden, problem.weight, problem.targets, problem.segments)
    reference = {"ref_hidden": problem.ref_hidden, "ref_weight": problem.ref_weight}
    out = fused_preference_loss(*stream, objective(case), backend="reference", **reference)
    out.loss.backward()
    grads = problem.hidden.grad, problem.weight.grad
    wrong = errors(
        Found(out.loss, out.stats.logp, out.stats.kl, *grads), truth(problem), problem.scored
    )
    assert wrong
    assert all(error < 1e-11 for error in wrong.values())


def test_errors_are_seen() -> None:
    problem = build(DPO)
    expected = truth(problem)
    problem.hidden.grad = 2 * expected.d_hidden.float()
    wrong = errors(
        Found(1.5 * expected.loss, None, None, problem.hidden.grad, None), expected, problem.scored
    )
    assert wrong == {"loss": pytest.approx(0.5), "d_hidden": pytest.approx(1.0, rel=1e-5)}


@pytest.mark.parametrize(
    ("case", "passes", "units"),
    [
        (DPO, "one_pass", 4),
        (TDPO2, "one_pass", 4),
        (replace(DPO, frozen=True), "one_pass", 3),
        (replace(TDPO2, frozen=True), "one_pass", 3),
        (replace(DPO, frozen=True, cached_ref=True), "one_pass", 2),
        (replace(DPO, masked=0.75), "one_pass", 1),
        (DPO, "keep_dz", 4),
        (replace(TDPO2, pairs=4), "keep_dz", 4),
        (replace(DPO, masked=0.75), "keep_dz", 1),
        (DPO, "two_pass", 5),
        (TDPO2, "two_pass", 6),
        (replace(TDPO2, frozen=True), "two_pass", 5),
    ],
)
def test_bare_products_are_those_of_the_passes(case: Case, passes: str, units: int) -> None:
    problem = build(case)
    bare = products(problem, passes)
    assert bare.flops == units * 2 * case.tokens * case.dim * case.vocab
    whole = whole_products(problem, passes)
    assert whole.flops == bare.flops
    assert len(whole.calls) <= 6
    step = WAYS[passes].ready(problem)
    assert _products_run(bare) == _products_run(step)


def _products_run(step: object) -> Counter:
    """What torch multiplies while `step` runs: operations and shapes."""
    assert callable(step)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as seen:
        step()
    names = {"aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm"}
    shapes = [(e.name, str(e.input_shapes)) for e in seen.events() if e.name in names]
    assert shapes
    return Counter(shapes)


def small(ways: tuple[str, ...], cases: tuple[Case, ...] = (DPO,)) -> Question:
    groups = tuple(Group((case,), ways, memory=False) for case in cases)
    return Question("bench_loss", "q", groups, groups, groups, rounds=2)


def test_ways_take_turns_and_what_fails_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(problem: Problem) -> Outcome:
        raise Unavailable("not on a Sunday")

    def exhaust(problem: Problem) -> Outcome:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 8 GiB")

    monkeypatch.setitem(WAYS, "liger", Way("liger", "Liger", refuse))
    monkeypatch.setitem(WAYS, "trl", Way("trl", "TRL", exhaust))
    question = small(("prefkit", "trl", "liger", "gemms"))
    told: list[float] = []
    records = measure(question, 0, question.cpu[0], "cpu", lambda what, share: told.append(share))
    assert sum(told) == pytest.approx(1.0)
    by_way = {record.way: record for record in records}
    assert [len(by_way[name].times) for name in by_way] == [2, 0, 0, 2]
    table = case_table(records, records)
    assert "| TRL | OOM |" in table
    assert "- TRL: OOM: CUDA out of memory" in table
    assert "- Liger: not on a Sunday" in table
    assert "not asked here" in table


def test_ratios_of_a_table() -> None:
    big = replace(DPO, vocab=1000, dim=1000)  # a dW of 4 MB
    ours = Record("bench_loss", 0, big, "prefkit", [1.0, 3.0, 2.0], 14_000_000, {"kl": 1.5e-5})
    theirs = Record("bench_loss", 0, big, "trl", [5.0], 104_000_000)
    bare = Record("bench_loss", 0, big, "gemms", [1.6])
    lines = case_table([ours, theirs, bare], [ours, theirs, bare]).splitlines()
    assert lines[4].startswith(
        "| prefkit | 2 | 1 – 3 | 1.00 | 1.25 | 14 | 10 | 1.00 | – | – | 1.5e-05"
    )
    assert "| 5 | 5 – 5 | 2.50 | 3.12 | 104 | 100 | 10.00 |" in lines[5]
    assert share_of_products([ours, theirs, bare]) == pytest.approx(0.8)


def test_a_run_is_resumed_and_ends_in_time(tmp_path: Path) -> None:
    question = small(("prefkit", "gemms"), (DPO, TDPO2))
    results = Results.new("cpu", "cpu", folder=tmp_path)
    run([question], "cpu", "cpu", results, minutes=1e-9)
    notes = [record.note for record in results.records]
    assert notes[:2] == ["", ""]
    assert all("beyond" in note for note in notes[2:])
    again = Results.of(results.path)
    assert again.records == results.records[:2]
    run([question], "cpu", "cpu", again)
    assert again.records[:2] == results.records[:2]
    assert [len(record.times) for record in again.records] == [2, 2, 2, 2]
    written = again.write()
    assert {path.suffix for path in written} == {".md", ".json"}
    page = written[0].read_text()
    assert "Not measured on a GPU" in page
    assert "torch" in page


def test_a_run_of_something_else_is_not_resumed(tmp_path: Path) -> None:
    results = Results.new("cpu", "cpu", folder=tmp_path)
    results.facts["torch"] = "2.8.0"
    results.add([])
    with pytest.raises(SystemExit, match=r"of torch '2\.8\.0'"):
        main(["--resume", str(results.path)])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_is_asked_for_by_name() -> None:
    with pytest.raises(SystemExit, match="finds no GPU"):
        main(["--gpu"])


@pytest.mark.parametrize("name", FILES)
def test_every_question_has_cases_for_every_size(name: str) -> None:
    question = load(name)
    assert question.name == name
    for size in ("tiny", "cpu", "full", "long", "gpu"):
        for group in question.groups(size):
            assert group.ways
            assert all(way in WAYS for way in group.ways)
            assert all(tiny(case).scored for case in group.cases)
            if size == "gpu":
                assert all(case.dtype == "bfloat16" for case in group.cases)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_memory_sees_whole_logits() -> None:
    case = replace(DPO, tokens=1024, vocab=8000)
    (whole,) = memory.on_cpu("eager", [case])
    logits = case.tokens * case.vocab * 4
    assert 2 * logits < whole < 8 * logits


def test_pytest_benchmark_replays_the_times(tmp_path: Path) -> None:
    (tmp_path / "bench_small.py").write_text(_SMALL_FILE)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "benchmarks.conftest", "bench_small.py"]
    paths = [str(ROOT), str(ROOT / "kernels" / "torch-ext")]
    # Inside a worker of pytest-xdist pytest-benchmark would switch itself off.
    outer = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    env = {**outer, "PYTHONPATH": os.pathsep.join(paths)}
    command += ["--benchmark-json=found.json"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| prefkit |" in done.stdout
    kept = json.loads((tmp_path / "found.json").read_text())["benchmarks"]
    assert [case["stats"]["rounds"] for case in kept] == [3, 3]
    assert all(0 < case["stats"]["median"] < 60 for case in kept)
    assert kept[0]["extra_info"]["errors"]["d_hidden"] < BOUNDS["d_hidden"]


_SMALL_FILE = """
from benchmarks.problems import Case
from benchmarks.questions import Group, Question

case = Case(loss="dpo", tokens=16, dim=8, vocab=50)
groups = (Group((case,), ("prefkit", "gemms"), memory=False),)
QUESTION = Question("bench_loss", "q", groups, groups, groups, rounds=3)


def test_it(replay):
    replay()
"""
