"""Runs TRL's tests with TRL's trainer and with another, and says where they differ.

See `benchmarks.trl_suite`. Ends with 1 where the other passes less than 98 % of what TRL passes.
"""

import argparse
from collections import Counter
from collections.abc import Sequence

from benchmarks.trl_suite import source
from benchmarks.trl_suite.running import PREFKIT, TRL, differences, run, share

ENOUGH = 0.98


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--trainer", default=PREFKIT, help="package.module:Class")
    parser.add_argument("--repository", default=source.given(), help=f"${source.VARIABLE}")
    parser.add_argument("-k", dest="select", help="as pytest's -k")
    options = parser.parse_args(arguments)
    if not options.repository:
        parser.error(f"give --repository or {source.VARIABLE}: a checkout of TRL, or a bare one")
    found = {}
    for trainer in dict.fromkeys((TRL, options.trainer)):
        found[trainer] = run(trainer, options.repository, options.select)
        counts = Counter(one.outcome for one in found[trainer].values())
        print(trainer, dict(counts), flush=True)
    theirs, ours = found[TRL], found[options.trainer]
    for line in differences(theirs, ours):
        print("-", line)
    passed, of = share(theirs, ours)
    print(f"{options.trainer} passes {passed} of the {of} tests that TRL's trainer passes.")
    return 0 if of and passed >= ENOUGH * of else 1


if __name__ == "__main__":
    raise SystemExit(main())
