"""`python -m benchmarks.gpu` keeps what it has found, whatever a step does, and claims no GPU."""

import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import kernels, wheels
from benchmarks.gpu.__main__ import RESULTS, main
from benchmarks.gpu.record import REHEARSAL, Record
from benchmarks.gpu.runner import Outcome
from benchmarks.gpu.steps import STEPS

ROOT = Path(__file__).parents[2]
TELL = "import json; print(json.dumps({'row': 'found', 'number': 12.5}), flush=True); "
RIGHT = "import json; print(json.dumps({'check': 'sums', 'ok': True}))"


def step(name: str, code: str, limit: float = 20, least: float = 1) -> dict[str, Any]:
    return {
        "name": name,
        "title": f"What {name} asks",
        "arguments": ["-c", code],
        "limit": limit,
        "least": least,
    }


def rehearse(folder: Path, steps: list[dict[str, Any]], *options: str) -> int:
    """Runs the command line on steps of these tests; the exit code."""
    file = folder / "steps.json"
    file.write_text(json.dumps(steps))
    return main(["--rehearse", "--steps", str(file), "--out", str(folder / "out"), *options])


def kept(folder: Path) -> dict[str, Any]:
    """The steps of the results file, by name."""
    content = json.loads((folder / "out" / "rehearsal.json").read_text())
    return {one["name"]: one for one in content["steps"]}


def page(folder: Path) -> str:
    return (folder / "out" / "rehearsal.md").read_text()


def test_what_a_killed_or_failing_step_told_is_kept_and_the_run_goes_on(tmp_path: Path) -> None:
    steps = [
        step("first", RIGHT),
        step(
            "killed", TELL + "import os; print('last words', flush=True); os.kill(os.getpid(), 9)"
        ),
        step("failing", TELL + "raise SystemExit('no such product')"),
        step("last", RIGHT),
    ]
    assert rehearse(tmp_path, steps) == 1
    found = kept(tmp_path)
    assert [one["status"] for one in found.values()] == ["ok", "killed", "failed", "ok"]
    assert found["killed"]["rows"] == found["failing"]["rows"] == [{"row": "found", "number": 12.5}]
    assert found["killed"]["tail"] == ["last words"]
    assert found["failing"]["tail"] == ["no such product"]
    assert "| killed | killed: killed by SIGKILL |" in page(tmp_path)
    assert "last words" in (tmp_path / "out" / "rehearsal.log").read_text()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "rehearsal.json",
        "rehearsal.md",
        "rehearsal.log",
    }


def test_a_limit_ends_the_whole_process_group(tmp_path: Path) -> None:
    child = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"
    code = (
        "import subprocess, sys, time; "
        f"one = subprocess.Popen([sys.executable, '-c', {child!r}]); "
        f"open({str(tmp_path / 'child')!r}, 'w').write(str(one.pid)); " + TELL + "time.sleep(60)"
    )
    start = time.monotonic()
    assert rehearse(tmp_path, [step("slow", code, limit=1.5), step("last", RIGHT)]) == 1
    assert time.monotonic() - start < 20
    found = kept(tmp_path)
    assert found["slow"]["status"] == "timed out"
    assert found["slow"]["rows"]
    assert found["last"]["status"] == "ok"
    assert not alive(int((tmp_path / "child").read_text()))


def test_nor_does_a_step_that_ends_well_leave_a_child_behind(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys; "
        "one = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "
        f"open({str(tmp_path / 'child')!r}, 'w').write(str(one.pid))"
    )
    assert rehearse(tmp_path, [step("parent", code)]) == 0
    assert not alive(int((tmp_path / "child").read_text()))


def alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for yet does not."""
    for _ in range(20):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            return False
        if state in "ZX":
            return False
        time.sleep(0.1)
    return True


def test_results_are_on_disk_when_the_next_step_starts(tmp_path: Path) -> None:
    look = (
        "import json; "
        f"content = json.load(open({str(tmp_path / 'out' / 'rehearsal.json')!r})); "
        "print(json.dumps({'row': 'before', 'steps': [s['name'] for s in content['steps']]}))"
    )
    assert rehearse(tmp_path, [step("first", RIGHT), step("second", look)]) == 0
    assert kept(tmp_path)["second"]["rows"] == [{"row": "before", "steps": ["first"]}]


def test_an_interrupted_run_kills_its_step_and_keeps_the_others(tmp_path: Path) -> None:
    mark = tmp_path / "child"
    slow = f"import os, time; open({str(mark)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    file = tmp_path / "steps.json"
    file.write_text(json.dumps([step("first", RIGHT), step("slow", slow)]))
    command = [sys.executable, "-m", "benchmarks.gpu", "--rehearse", "--steps", str(file)]
    running = subprocess.Popen([*command, "--out", str(tmp_path / "out")], cwd=ROOT, env=paths())
    while not (mark.exists() and mark.read_text()) and running.poll() is None:
        time.sleep(0.05)
    running.terminate()
    assert running.wait(20) == 143
    assert list(kept(tmp_path)) == ["first"]
    assert not alive(int(mark.read_text()))


def paths(**more: str) -> dict[str, str]:
    found = os.pathsep.join([str(ROOT), str(ROOT / "kernels" / "torch-ext")])
    return {**os.environ, "PYTHONPATH": found, **more}


def test_resuming_takes_what_did_not_come_to_an_end(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    note = f"open({str(ran)!r}, 'a').write"
    once = f"import os, signal; first = not os.path.exists({str(tmp_path / 'once')!r}); "
    once += f"open({str(tmp_path / 'once')!r}, 'w'); first and os.kill(os.getpid(), 9)"
    steps = [
        step("good", f"{note}('g')"),
        step("bad", f"{note}('b'); raise SystemExit(1)"),
        step("killed", once),
    ]
    results = tmp_path / "out" / "rehearsal.json"
    assert rehearse(tmp_path, steps) == 1
    assert kept(tmp_path)["killed"]["status"] == "killed"
    elsewhere = ("--resume", str(results), "--out", str(tmp_path / "elsewhere"))
    assert rehearse(tmp_path, steps, *elsewhere) == 2
    assert rehearse(tmp_path, steps, "--resume", str(results)) == 1
    assert ran.read_text() == "gb"
    assert [one["status"] for one in kept(tmp_path).values()] == ["ok", "failed", "ok"]


@pytest.mark.parametrize("name", ["hardware", "commit", "source"])
def test_another_machine_or_source_is_not_resumed(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rehearse(tmp_path, [step("good", "pass")]) == 0
    results = tmp_path / "out" / "rehearsal.json"
    content = json.loads(results.read_text())
    content["machine"][name] = "another"
    results.write_text(json.dumps(content))
    assert rehearse(tmp_path, [step("good", "pass")], "--resume", str(results)) == 2
    assert f"of {name} 'another'" in capsys.readouterr().err
    (tmp_path / "no.json").write_text("[]")
    assert rehearse(tmp_path, [], "--resume", str(tmp_path / "no.json")) == 2


def test_what_does_not_fit_the_minutes_is_cut_or_left_out_with_the_reason(tmp_path: Path) -> None:
    steps = [
        step("short", "pass"),
        step("cut", "import time; time.sleep(60)", limit=50, least=1),
        step("long", "pass", limit=50, least=40),
    ]
    assert rehearse(tmp_path, steps, "--minutes", "0.1") == 1
    found = kept(tmp_path)
    assert found["short"]["status"] == "ok"
    assert found["cut"]["status"] == "timed out"
    assert "cut from 50 s" in found["cut"]["why"]
    assert found["long"]["status"] == "left out"
    assert "of the 0.1 minutes are left" in found["long"]["why"]
    assert "| long | left out: " in page(tmp_path)


def test_only_the_steps_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps = [step("first", "raise SystemExit(1)"), step("second", "pass")]
    assert rehearse(tmp_path, steps, "--only", "second") == 0
    assert list(kept(tmp_path)) == ["second"]
    assert rehearse(tmp_path, steps, "--only", "third") == 2
    assert "there is no step 'third'; there are first, second" in capsys.readouterr().err


@pytest.mark.parametrize(
    "env",
    [
        pytest.param(
            {"CUDA_VISIBLE_DEVICES": "0"},
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
        {"CUDA_VISIBLE_DEVICES": "", "NVIDIA_VISIBLE_DEVICES": "all", "GPU_NAME": "NVIDIA H100"},
    ],
)
def test_without_a_gpu_it_refuses_in_one_line_and_writes_nothing(
    tmp_path: Path, env: dict[str, str]
) -> None:
    env = paths(OUT=str(tmp_path / "out"), **env)
    command = [sys.executable, "-m", "benchmarks.gpu"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "torch finds no GPU here; --rehearse runs every line of it on a CPU"
    ]
    assert not (tmp_path / "out").exists()


def test_a_rehearsal_claims_no_gpu_and_stays_out_of_the_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPU_NAME", "NVIDIA H100")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    see = (
        "import json, os; print(json.dumps({'row': 'e', 'c': os.environ['CUDA_VISIBLE_DEVICES']}))"
    )
    assert rehearse(tmp_path, [step("see", see)]) == 0
    assert page(tmp_path).startswith(f"# {REHEARSAL}\n")
    assert "H100" not in page(tmp_path)
    assert (
        "CUDA"
        not in kept(tmp_path)
        | json.loads((tmp_path / "out" / "rehearsal.json").read_text())["machine"]
    )
    assert kept(tmp_path)["see"]["rows"][0]["c"] == ""
    file = tmp_path / "steps.json"
    for folder in (RESULTS, RESULTS / "below"):
        assert main(["--rehearse", "--steps", str(file), "--out", str(folder)]) == 2
    assert not (RESULTS / "below").exists()


def test_the_page_shows_checks_tables_and_pieces(tmp_path: Path) -> None:
    told: list[dict[str, Any]] = [
        {"check": "sums", "ok": True, "seconds": 0.1},
        {"check": "graph", "ok": None, "seconds": 0.0, "why": "not run: no GPU"},
        {"check": "dW", "ok": False, "seconds": 0.2, "dw": 0.5},
        {"row": "products", "rows": 64, "TFLOP/s": 512.3456},
        {"row": "products", "rows": 128, "note": "a|b"},
        {"markdown": "| way | s |\n| --- | --- |\n| prefkit | 1 |"},
        {"raw": 1},
    ]
    record = Record(tmp_path / "run.json", {"hardware": "a card, 80 GiB", "torch": "2"}, False)
    record.add(Outcome("smoke", "Right?", "failed", "exit code 1", 3.2, 80, told, ["the end"]))
    text = record.page.read_text()
    assert "a card, 80 GiB; torch 2." in text
    assert "3 checks: 1 right, 1 wrong, 1 skipped." in text
    assert '- wrong: dW: {"dw": 0.5}' in text
    assert "- skipped: graph: not run: no GPU" in text
    assert "| rows | TFLOP/s | note |" in text
    assert "| 64 | 512.3 | – |" in text
    assert "| 128 | – | a\\|b |" in text
    assert "| prefkit | 1 |" in text
    assert "```text\nthe end\n```" in text
    assert REHEARSAL not in text


def test_the_first_five_steps_end_in_time() -> None:
    assert sum(one.limit for one in STEPS[:5]) <= 330
    assert all(one.least <= one.limit for one in STEPS)


def test_wheels_are_installed_without_a_network_and_one_that_fits_not_stops_no_other(
    tmp_path: Path,
) -> None:
    folder, site = tmp_path / "wheels", tmp_path / "site"
    assert (
        wheels.install(folder, site)
        == "no wheels in wheels: peers that are not installed are missing"
    )
    folder.mkdir()
    make_wheel(folder, "fits", "py3")
    assert wheels.install(folder, site) == "1 wheels installed"
    assert wheels.versions(site) == {"fits": "1.0"}
    make_wheel(folder, "older", "py27")
    assert wheels.install(folder, site).startswith("1 wheels installed, not older (ERROR: ")


def make_wheel(folder: Path, name: str, python: str) -> None:
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-{python}-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", "")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(
            f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {python}-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")


def test_a_failing_test_is_told_when_it_fails(tmp_path: Path) -> None:
    """Not at the end, which a run that is stopped does not reach."""
    file = tmp_path / "test_one.py"
    file.write_text("def test_wrong():\n    assert 1 == 2\n\n\ndef test_right():\n    pass\n")
    command = [sys.executable, "-m", "pytest", "-p", "benchmarks.gpu.failing", "-q", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    (told,) = [json.loads(line) for line in lines if line.startswith("{")]
    assert told["test"].endswith("test_one.py::test_wrong")
    assert "assert 1 == 2" in told["why"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64>>", "attention"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16", "attention"),
        ("gradient_kernel", "rows of logits"),
        ("nvjet_sm90_tst_128x256_64x4_2x1_v_bz_coopA_TNN", "products"),
        ("multi_tensor_apply_kernel<FusedOptimizerTensorListMetadata<4>>", "optimiser, clipping"),
        ("vectorized_elementwise_kernel<8, bfloat16_copy_kernel_cuda>", "copies, casts"),
        ("elementwise_kernel<128, 2, MulFunctor<float>>", "elementwise"),
        ("made_up", "other"),
    ],
)
def test_kernels_are_counted_by_what_they_do(name: str, kind: str) -> None:
    assert kernels.kind(name) == kind
