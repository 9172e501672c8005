"""What drawing needs, on machines without a display and without matplotlib."""

from typing import Any


def load_pyplot() -> Any:
    """matplotlib's pyplot, drawing into files; None, and a line that says so, where it lacks."""
    try:
        import matplotlib
    except ImportError:
        print("no picture: matplotlib is not installed")
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
