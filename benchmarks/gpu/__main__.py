"""Everything that one GPU can tell in nine minutes, most valuable first.

    python -m benchmarks.gpu                                  all of it (`make gpu`)
    python -m benchmarks.gpu --list                           the steps and their limits
    python -m benchmarks.gpu --only smoke head --minutes 3
    python -m benchmarks.gpu --resume benchmarks/results/2026-12-01-gpu-….json
    python -m benchmarks.gpu --rehearse                       every line of it on a CPU, tiny

From a checkout without an installation: PYTHONPATH=.:kernels/torch-ext python3 -m benchmarks.gpu.
Exit code: 0, 1 where a step failed, 2 where there is nothing to run on or an option is wrong.
"""

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.gpu import card, runner, wheels
from benchmarks.gpu.card import ROOT
from benchmarks.gpu.record import Record
from benchmarks.gpu.steps import STEPS, Step, from_file

RESULTS = ROOT / "benchmarks" / "results"
REHEARSALS = ROOT / "prefkit-output" / "gpu-rehearsal"
MINUTES = 9.0
_PATIENCE = 3.0  # times the limits and minutes, in a rehearsal
_WRITING = 2.0  # seconds kept back at the end


def go(
    steps: Sequence[Step], record: Record, minutes: float, env: dict[str, str], started: float
) -> None:
    """Runs the steps that the record does not have, for so many minutes since `started`."""
    record.write()
    with record.log.open("a", encoding="utf-8") as log:
        for step in steps:
            before = record.outcomes.get(step.name)
            if before is not None and before.done:
                print(f"{step.name}: done before ({before.status})", flush=True)
                continue
            left = 60 * minutes - (time.monotonic() - started) - _WRITING
            if left < min(step.least, step.limit):
                why = f"{max(left, 0):.0f} s of the {minutes:g} minutes are left"
                outcome = runner.Outcome(step.name, step.title, runner.LEFT_OUT, why)
            else:
                limit = min(step.limit, left)
                print(f"{step.name}: {step.title} (at most {limit:.0f} s)", flush=True)
                outcome = runner.run(step.name, step.title, step.command, limit, env, log)
                if limit < step.limit and outcome.status == runner.TIMED_OUT:
                    outcome.why += f", cut from {step.limit:.0f} s: the minutes are over"
            record.add(outcome)
            rest = f": {outcome.why}" if outcome.why else ""
            print(f"{step.name}: {outcome.status}, {outcome.seconds:.0f} s{rest}", flush=True)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__.split("\n")[0]
    )
    names = [step.name for step in STEPS]
    parser.add_argument("--only", nargs="+", metavar="STEP", help=f"of {', '.join(names)}")
    parser.add_argument("--minutes", type=float, help="for all of it (9)")
    parser.add_argument("--resume", type=Path, metavar="FILE", help="go on with this .json")
    parser.add_argument("--out", type=Path, help="folder of the results ($OUT, or results/)")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, at tiny sizes")
    parser.add_argument("--list", action="store_true", help="the steps, and nothing else")
    parser.add_argument("--wheels", type=Path, default=wheels.FOLDER, help="the peers' wheels")
    parser.add_argument("--steps", type=Path, help=argparse.SUPPRESS)  # other steps, for tests
    return parser.parse_args(arguments)


def _stop(message: str) -> int:
    print(message, file=sys.stderr)
    return 2


def _chosen(options: argparse.Namespace) -> list[Step]:
    """Raises ValueError for a step that there is not."""
    if options.steps and not options.rehearse:
        raise ValueError("--steps is for rehearsals")
    steps = from_file(options.steps) if options.steps else STEPS
    if options.rehearse and not options.steps:  # two busy cores are no reason to fail
        steps = tuple(replace(step, limit=_PATIENCE * step.limit) for step in steps)
    names = [step.name for step in steps]
    unknown = [name for name in options.only or () if name not in names]
    if unknown:
        raise ValueError(f"--only: there is no step {unknown[0]!r}; there are {', '.join(names)}")
    return [step for step in steps if not options.only or step.name in options.only]


def _begin(options: argparse.Namespace, facts: dict[str, str]) -> Record:
    """Raises ValueError or OSError where the results cannot be kept as asked."""
    if options.resume:
        if options.out and options.out.resolve() != options.resume.resolve().parent:
            raise ValueError("--resume goes on in the folder of its file, so leave out --out")
        return Record.resumed(options.resume, facts, options.rehearse)
    if options.rehearse:
        folder, name = options.out or REHEARSALS, "rehearsal"
        if RESULTS in (folder.resolve(), *folder.resolve().parents):
            raise ValueError(f"--out: a rehearsal has no place in {RESULTS.name}/")
    else:
        folder = options.out or Path(os.environ.get("OUT") or RESULTS)
        name = f"{date.today()}-gpu-{card.slug(facts['hardware'])}"
    folder.mkdir(parents=True, exist_ok=True)
    path, again = folder / f"{name}.json", 1
    while path.exists() and not options.rehearse:  # an earlier run of the day stays as it is
        again += 1
        path = folder / f"{name}-{again}.json"
    record = Record(path, facts, options.rehearse)
    record.log.write_text("", "utf-8")
    return record


def main(arguments: Sequence[str] | None = None) -> int:
    started = time.monotonic()
    options = _options(arguments)
    try:
        steps = _chosen(options)
    except (ValueError, OSError) as error:
        return _stop(str(error))
    if options.list:
        for step in steps:
            print(f"{step.name:20} {step.limit:4.0f} s  {step.title}")
        return 0
    minutes = options.minutes
    if minutes is None:
        minutes = MINUTES * (_PATIENCE if options.rehearse else 1)
    if not minutes > 0:
        return _stop(f"--minutes must be > 0, got {minutes:g}")
    site = Path(tempfile.mkdtemp(prefix="prefkit-peers-"))
    signal.signal(
        signal.SIGTERM, _interrupted
    )  # the running step is killed, its rows are in the log
    try:
        env = card.environment(options.rehearse, None if options.rehearse else site)
        facts = card.facts("cpu") if options.rehearse else card.of_gpu(env)
        if facts is None:
            return _stop("torch finds no GPU here; --rehearse runs every line of it on a CPU")
        if options.rehearse:  # the peers of the environment; wheels are for the machine with a GPU
            facts["peers"] = "those of the environment"
        else:
            facts["peers"] = wheels.install(options.wheels, site)
            facts |= wheels.versions(site)
        record = _begin(options, facts)
        go(steps, record, minutes, env, started)
    except (ValueError, OSError, RuntimeError) as error:
        return _stop(str(error))
    finally:
        shutil.rmtree(site, ignore_errors=True)
    print("written:", ", ".join(str(path) for path in (record.page, record.path, record.log)))
    if record.failed:
        print("did not end well:", ", ".join(record.failed))
    return 1 if record.failed else 0


def _interrupted(*_: Any) -> None:
    raise SystemExit(143)


if __name__ == "__main__":
    # The running step is killed with its children; its lines are in the log, the others on disk.
    signal.signal(signal.SIGTERM, _interrupted)
    sys.exit(main())
