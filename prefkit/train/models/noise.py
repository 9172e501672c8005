"""NEFTune (arXiv 2310.05914): uniform noise on the embeddings while a model trains.

    embedding + u,    u ~ U(−1, 1) · α / √(L·D)        L: tokens of the sequence, D: width

transformers takes the length of the row for L, so that the more sequences share a row, the weaker
their noise. Here L is the length of the sequence itself in every layout, padding left out. A token
that several sequences share (a common prefix) gets one noise, of the longest of them. The reference
runs in evaluation mode and sees no noise.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from prefkit.data.batch.spread import ShardedStream
from prefkit.data.batch.stream import Stream
from prefkit.model.head.fused import unwrap


@contextmanager
def noisy_embeddings(model: nn.Module, alpha: float | None) -> Iterator[None]:
    """Inside the block the embeddings of a model that trains have noise; None adds none.

    Args:
        model: a causal LM, possibly wrapped; it may be wrapped further in the block.
        alpha: α.
    """
    if alpha is None:
        yield
        return
    owner: Any = unwrap(model)
    noise = _Noise(alpha)
    handles = [
        owner.register_forward_pre_hook(noise.see_batch, with_kwargs=True),
        owner.get_input_embeddings().register_forward_hook(noise.add),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Noise:
    def __init__(self, alpha: float) -> None:
        self.alpha = alpha
        self._read: dict[str, Any] = {}

    def see_batch(self, _: nn.Module, __: Any, inputs: dict[str, Any]) -> None:
        """Keeps what the model is about to read."""
        self._read = {name: inputs.get(name) for name in ("prefkit_stream", "attention_mask")}

    def add(self, module: nn.Module, _: Any, embedded: Tensor) -> Tensor:  # (R, L, D)
        """The embeddings with noise."""
        if not module.training:
            return embedded
        row, mask = self._read.get("prefkit_stream"), self._read.get("attention_mask")
        rows, count, width = embedded.shape
        if isinstance(row, ShardedStream):  # the piece of one noise that all of the group draw
            noise = _uniform(embedded, rows, len(row.stream))
            piece = slice(row.group.rank() * count, (row.group.rank() + 1) * count)
            lengths, noise = row.stream.once(_lengths)[piece], noise[:, piece]
        else:
            noise = _uniform(embedded, rows, count)
            lengths = _lengths_of_rows(mask, count) if row is None else row.once(_lengths)
        scale = self.alpha / (lengths.to(embedded.device) * width).sqrt()
        return embedded + noise * scale[..., None].to(embedded.dtype)


def _uniform(like: Tensor, rows: int, count: int) -> Tensor:
    return like.new_empty((rows, count, like.shape[-1])).uniform_(-1, 1)


def _lengths_of_rows(mask: Any, count: int) -> Tensor:
    """(R, 1) tokens of each padded row; of all rows the same where the mask does not tell."""
    if isinstance(mask, Tensor) and mask.dim() == 2:
        return mask.sum(1, keepdim=True)
    return torch.tensor([[count]])


def _lengths(stream: Stream) -> Tensor:
    """(N,) int64: for each token, the length of the longest sequence that it belongs to."""
    longest = [d + node.length for d, node in zip(stream.depths, stream.nodes, strict=True)]
    for index in range(len(longest) - 1, -1, -1):  # children before their parents
        if (parent := stream.nodes[index].parent) >= 0:
            longest[parent] = max(longest[parent], longest[index])
    counts = torch.tensor([node.length for node in stream.nodes])
    return torch.tensor(longest).repeat_interleave(counts)
