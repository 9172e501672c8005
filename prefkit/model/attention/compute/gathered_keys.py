"""Keys that several attentions read, end to end; and their gradient, back at the tokens, in order.

The gradient of `index_select` adds the parts of a key that is read three times or more in whatever
order a GPU's threads come. Here a token's own part comes first. What further attentions read of it
is summed along an axis that all tokens read so often share, and added: the same bits each time, in
as many steps as there are different numbers of uses.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prefkit.data.batch.stream import Attend


@dataclass(frozen=True)
class Uses:
    """Where each token lies among the gathered keys.

    Attributes:
        own: (n,) int64, where the n queries lie, each as the key of its own attention.
        further: tokens (m,) and where they lie otherwise (m, u), both int64: those that u further
            attentions read, for each u that there is. Tokens are numbered as in the row.
    """

    own: Tensor
    further: tuple[tuple[Tensor, Tensor], ...]

    @classmethod
    def of(cls, attends: Sequence[Attend], device: torch.device) -> "Uses":
        """From attentions whose keys are gathered in their order, the queries of each last."""
        own: list[Tensor] = []
        tokens: list[Tensor] = []
        places: list[Tensor] = []
        place = 0
        for one in attends:
            for span in one.context:
                tokens.append(torch.arange(span.start, span.stop))
                places.append(torch.arange(place, place + len(span)))
                place += len(span)
            own.append(torch.arange(place, place + len(one.queries)))
            place += len(one.queries)
        if not tokens:
            return cls(moved(torch.cat(own), device), ())
        read, order = torch.cat(tokens).sort(stable=True)
        placed = torch.cat(places)[order]
        distinct, counts = torch.unique_consecutive(read, return_counts=True)
        starts = counts.cumsum(0) - counts
        further = []
        for count in counts.unique().tolist():
            chosen = counts == count
            where = starts[chosen][:, None] + torch.arange(count)
            further.append((moved(distinct[chosen], device), moved(placed[where], device)))
        return cls(moved(torch.cat(own), device), tuple(further))

    @property
    def most(self) -> int:
        """Parts of which the gradient of a token is the sum, at most."""
        return 1 + max((places.shape[1] for _, places in self.further), default=0)

    def add_further(self, total: Tensor, grad: Tensor) -> None:
        """total (N, …), of all tokens, += what further attentions give, from grad (K, …)."""
        for tokens, places in self.further:  # no token twice in one of them: no two threads meet
            parts = grad.index_select(0, places.flatten()).unflatten(0, places.shape)
            total.index_add_(0, tokens, parts.sum(1, dtype=total.dtype))


def moved(x: Tensor, device: torch.device) -> Tensor:
    """To a device; from pinned memory a copy does not wait for a GPU."""
    if device.type != "cuda":
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)
