"""`python -m benchmarks.papers`: runs the comparison, or goes on with it, and writes its page.

python -m benchmarks.papers                   all of it (84 minutes of two cores)
python -m benchmarks.papers --quick           five minutes: does the machinery work?
python -m benchmarks.papers --report-only     the page from what has been measured
"""

import argparse
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.papers.journal import Journal
from benchmarks.papers.methods import REGIMES, Regime
from benchmarks.papers.runs import Comparison
from benchmarks.papers.task_order import Clock
from benchmarks.papers.tasks import Size
from prefkit.errors import PrefkitError

ROOT = Path(__file__).parents[2]
WORK = ROOT / "prefkit-output"
QUICK = Size(seeds=(0, 1), tuning_seeds=(100,), test=100, validation=40, along=60, points=1)


def quick(regime: Regime) -> Regime:
    """A regime so small that only the machinery is seen to work."""
    return replace(
        regime, pairs=8, steps=4, batch_size=8, questions=24, habit=replace(regime.habit, steps=30)
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="benchmarks.papers", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=88, help="start nothing after this (88)")
    parser.add_argument("--seeds", type=int, default=5, help="seeds of the tables (5)")
    parser.add_argument("--regimes", nargs="+", choices=REGIMES, help="all (--quick: main)")
    parser.add_argument("--workers", type=int, default=2, help="processes, one thread each (2)")
    parser.add_argument("--quick", action="store_true", help="a small run; tests the machinery")
    parser.add_argument("--fresh", action="store_true", help="forget what has been measured")
    parser.add_argument("--report-only", action="store_true", help="only write the page")
    parser.add_argument("--out", type=Path, help="the page (docs/papers.md)")
    options = parser.parse_args(argv)
    regimes = tuple(REGIMES[name] for name in options.regimes or REGIMES)
    comparison = Comparison(regimes, Size(seeds=tuple(range(options.seeds))), WORK / "papers")
    page = options.out or ROOT / "docs" / "papers.md"
    if options.quick:
        names = options.regimes or ["main"]
        regimes = tuple(quick(REGIMES[name]) for name in names)
        comparison = Comparison(regimes, QUICK, WORK / "papers-quick")
        page = options.out or comparison.work / "papers.md"
    if options.fresh:
        shutil.rmtree(comparison.work, ignore_errors=True)
    try:
        journal = Journal(comparison.work / "journal.jsonl", comparison.terms())
    except (ValueError, PrefkitError) as error:
        parser.error(str(error))
    clock = Clock(options.minutes, options.workers, planned=0.0)
    failed = False
    try:
        if not options.report_only:
            comparison.run(journal, clock)
    except PrefkitError as error:  # what was measured before is worth its page
        failed = True
        print(f"stopped: {error}", flush=True)
    from benchmarks.papers.page import write_page

    for path in write_page(comparison, journal, page, clock):
        print(f"wrote {path}")
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
