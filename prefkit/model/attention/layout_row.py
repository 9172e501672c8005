"""The row that the test of layouts reads: a tree of three sequences and a fourth sequence."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prefkit.data.batch.stream import Stream

_LONGEST = 32  # tokens of the longest sequence of the test; fewer where the data has fewer


@dataclass(frozen=True)
class LayoutRow:
    """A row of four sequences: two part at once, a third parts from the second later on.

    Attributes:
        ids: (1, N) int64.
        stream: its trees.
        places: the positions of the tokens of each of the four sequences.
    """

    ids: Tensor
    stream: Stream
    places: tuple[Tensor, ...]

    @classmethod
    def of(cls, config: Any, longest: int, device: torch.device) -> "LayoutRow":
        """No sequence longer than the data's longest, as far as 9 tokens allow."""
        size = max(9, min(longest, _LONGEST))
        trunk = size // 2 + 1
        first = size - trunk
        second, single = first - max(1, first // 3), size // 2  # padded, where they share a batch
        middle = max(1, second // 2)
        stream = Stream.of((trunk, first, (middle, second - middle, second - middle)), single)
        paths = [[place for span in path for place in range(*span)] for path in stream.paths()]
        return cls(
            ids=spread_ids(config, len(stream)).to(device)[None],
            stream=stream,
            places=tuple(torch.tensor(path, device=device) for path in paths),
        )

    def inputs(self) -> dict[str, Any]:
        """The row as a batch."""
        positions = self.stream.position_ids().to(self.ids.device)[None]
        return {"input_ids": self.ids, "stream": self.stream, "position_ids": positions}


def spread_ids(config: Any, count: int, draw: int = 0) -> Tensor:
    """(count,) int64 ids from all over the vocabulary but its ends, without special tokens.

    Special tokens lie at the ends, and a model's numbers for them may be so large that their
    rounding is tens of times that of text (SmolLM2's first 17).

    Args:
        config: of the text model; `vocab_size` and whatever is named `…_token_id` is read.
        count: how many.
        draw: others for each number.
    """
    vocab = int(config.vocab_size)
    named = [v for k, v in vars(config).items() if k.endswith(("_token_id", "_token_index"))]
    special = {i for v in named for i in (v if isinstance(v, list | tuple) else [v])}
    inner = [i for i in range(vocab // 8, vocab - vocab // 8) if i not in special]
    usable = inner or list(range(vocab))
    golden = 0.6180339887498949  # its multiples, modulo 1, lie as evenly as a sequence can
    steps = range(1 + draw * count, 1 + (draw + 1) * count)
    return torch.tensor([usable[int(j * golden % 1 * len(usable))] for j in steps])
