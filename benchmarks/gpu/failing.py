"""A pytest plugin that tells each failure when it happens: a run that is stopped has told them.

pytest -p benchmarks.gpu.failing
"""

import json
from typing import Any


def pytest_configure(config: Any) -> None:
    """Called by pytest; workers of xdist leave the telling to the process that collects from
    them."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Failing(config), "failing")


class _Failing:
    def __init__(self, config: Any) -> None:
        self.config = config

    def pytest_runtest_logreport(self, report: Any) -> None:
        if not report.failed:
            return
        crash = getattr(report.longrepr, "reprcrash", None)
        why = " ".join(str(crash.message if crash is not None else report.longrepr).split())[:400]
        found = {"row": "Tests that failed", "test": report.nodeid, "when": report.when, "why": why}
        # By pytest's own writer: what is printed here is captured, and dots may stand in its line.
        reporter = self.config.pluginmanager.get_plugin("terminalreporter")
        reporter.write("\n")
        reporter.write_line(json.dumps(found, ensure_ascii=False))
        reporter.flush()
