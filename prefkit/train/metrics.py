"""What a log line says: means over the pairs since the last one, and when to explain them."""

import sys
import time
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from prefkit.errors import PrefkitError


class NotFiniteError(PrefkitError):
    """The loss became NaN or infinite: nothing that the user typed, so not a usage error."""

    exit_code = 1


class MetricWindow:
    """Sums of metrics since the last log line; no device sync until `means`."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}  # name → (2,): Σ count · mean, Σ count

    def add(self, name: str, value: Tensor, count: int | Tensor) -> None:
        """Adds a mean (a detached scalar) over `count` items; over none nothing but the name."""
        value = value.detach().to(torch.float32 if value.device.type == "mps" else torch.float64)
        value = torch.stack([value, torch.ones_like(value)]) * count
        if isinstance(count, int) and not count:  # what does not count may be NaN
            value = torch.zeros_like(value)
        self._sums[name] = self._sums[name] + value if name in self._sums else value

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """Means over all items of all processes, those of none left out; the window starts anew."""
        if not self._sums:
            return {}
        names = sorted(self._sums)
        sums = torch.stack([self._sums[name] for name in names])
        if accelerator.num_processes > 1:
            sums = accelerator.reduce(sums, "sum")
        self._sums.clear()
        means = zip(names, sums.tolist(), strict=True)
        return {name: total / count for name, (total, count) in means if count}


class TokenCount(NamedTuple):
    """Tokens that models read, and those of the texts: a prefix that sides share is read once."""

    read: int = 0
    text: int = 0

    def plus(self, other: "TokenCount") -> "TokenCount":
        """Both together."""
        return TokenCount(self.read + other.read, self.text + other.text)


class TokenClock:
    """Tokens a second of training; time for evaluation and saving is taken out by `pause`."""

    def __init__(self) -> None:
        self.total = TokenCount()
        self._tokens = TokenCount()
        self._start = time.perf_counter()
        self.paused = 0.0

    def add(self, tokens: TokenCount) -> None:
        """Counts the tokens of a batch."""
        self._tokens = self._tokens.plus(tokens)

    def seen(self) -> TokenCount:
        """All tokens so far, those of the present window (of this process) included."""
        return self.total.plus(self._tokens)

    def pause(self, seconds: float) -> None:
        """Takes time out of the present window."""
        self.paused += seconds

    def restart(self) -> None:
        """Starts a new window now."""
        self._tokens, self._start, self.paused = TokenCount(), time.perf_counter(), 0.0

    def read(self, accelerator: Accelerator) -> float:
        """Tokens read a second since the last call, over all processes; also adds to `total`."""
        count = self._tokens
        if accelerator.num_processes > 1:
            tokens = torch.tensor(count, device=accelerator.device)
            count = TokenCount(*accelerator.reduce(tokens, "sum").tolist())
        self.total = self.total.plus(count)
        rate = count.read / max(time.perf_counter() - self._start - self.paused, 1e-9)
        self.restart()
        return rate


def peak_memory_mb(device: torch.device) -> float:
    """Highest memory use so far in MiB: of the tensors on a GPU, of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    import resource  # not on Windows, where no other figure is worth a dependency

    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


FALLING_CHOSEN = (
    "The reward of the chosen answers is falling (rewards/chosen {first:.3f} → {now:.3f}) while "
    "the margin grows ({first_margin:.3f} → {now_margin:.3f}). Both answers become less likely, "
    "the rejected one faster: the model learns what to avoid more than what to prefer, and the "
    "probability goes to answers that are in neither. A little of this is usual with DPO; much of "
    "it harms generation. What helps: a lower learning_rate or a higher beta, nll_weight (0.1 to 1)"
    ", method tdpo2, which holds the model near the reference, or chosen answers that the model "
    "itself could have written. This is said once."
)


class RewardWatch:
    """Notices a chosen reward that falls while the margin grows; explains it once."""

    def __init__(self, patience: int = 3) -> None:
        self.patience = patience  # log lines in a row: one bad batch is not a trend
        self._first: tuple[float, float] | None = None
        self._last: tuple[float, float] | None = None
        self._streak = 0
        self._said = False

    def see(self, chosen: float, margin: float) -> str | None:
        """Takes one log line's `rewards/chosen` and `rewards/margins`; returns the text, once."""
        if self._first is None or self._last is None:
            self._first = self._last = (chosen, margin)
            return None
        worse = chosen < self._last[0] and chosen < 0 and margin > self._first[1]
        self._streak = self._streak + 1 if worse else 0
        self._last = (chosen, margin)
        if self._said or self._streak < self.patience or margin <= 0:
            return None
        self._said = True
        first, first_margin = self._first
        return FALLING_CHOSEN.format(
            first=first, now=chosen, first_margin=first_margin, now_margin=margin
        )
