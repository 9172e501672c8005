"""A pytest plugin that tells each failure when it happens: a run that is stopped has told them.

pytest -p benchmarks.gpu.failing
"""

import os
from typing import Any

from benchmarks.gpu.telling import row


def pytest_runtest_logreport(report: Any) -> None:
    """Called by pytest, of several workers in the process that collects from them."""
    if not report.failed or "PYTEST_XDIST_WORKER" in os.environ:
        return
    crash = getattr(report.longrepr, "reprcrash", None)
    why = str(crash.message if crash is not None else report.longrepr)
    row("Tests that failed", test=report.nodeid, when=report.when, why=" ".join(why.split())[:400])
