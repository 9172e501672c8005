"""What a model's masks say of a row without padding: how far back each of its layers sees.

transformers makes one mask for each kind of layer from a function of two indices, and hands each
layer its own. For a stream it is handed a `RowMask` instead, which says in a few numbers what that
function says; no mask of queries × keys is ever made. As the model itself passes it on, no config
needs to be believed: a layer reads the reach that its mask would have had.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import masking_utils
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from prefkit.data.batch.stream import Reach
from prefkit.errors import ModelError
from prefkit.model.attention.current_row import Row

# What transformers adds to a mask of sequences that it finds by their positions, and padding: a
# stream says both by itself. Each is the name of the function that makes the part.
_OF_THE_ROW = ("packed_sequence_mask_function", "padding_mask_function")
_COMBINED = ("and_masks", "remap_positions_for_packed_sequence", "add_offsets_to_mask_function")


@dataclass(frozen=True, eq=False)
class RowMask:
    """The mask of one kind of layer.

    An object and no tensor: nothing casts, moves or combines it on its way to the layer, and a
    model that computes with its mask by itself fails at once.

    Attributes:
        row: the row that is read.
        reach: how far back a token sees.
        foreign: parts of the mask that are none of transformers' causal, sliding and chunked ones.
    """

    row: Row
    reach: Reach
    foreign: tuple[str, ...]
    _base: str
    _made_with: dict[str, Any]

    @classmethod
    def of(cls, row: Row, base: str, made_with: dict[str, Any]) -> "RowMask":
        """From what a mask is asked for with.

        Args:
            row: the row that is read.
            base: name of transformers' attention implementation.
            made_with: keyword arguments of its mask function, `mask_function` among them.
        """
        window = chunk = None
        causal, foreign = False, []
        for maker, values in _parts(made_with["mask_function"]):
            if maker == "sliding_window_overlay":
                window = int(values["sliding_window"])
            elif maker == "chunked_overlay":
                chunk = int(values["chunk_size"])
            elif maker == "causal_mask_function":
                causal = True
            elif maker not in _OF_THE_ROW:
                foreign.append(maker)
        if not causal:
            foreign.append("attention to later tokens")
        return cls(row, Reach(window, chunk), tuple(foreign), base, made_with)

    def __getitem__(self, key: Any) -> "RowMask":
        """The same mask for slices that leave nothing out, as Gemma-4 takes them of any mask."""
        keys = key if isinstance(key, tuple) else (key,)
        if all(isinstance(k, slice) and not k.start and k.stop is None for k in keys):
            return self
        raise TypeError("a row without padding has no mask of queries × keys to take a part of")

    def checked(self, name: str) -> Reach:
        """The reach, if the mask says nothing else.

        Args:
            name: of the module that was given the mask.

        Raises:
            ModelError: it does.
        """
        if self.foreign:
            raise ModelError(
                f"{name} attends under a mask of its own ({', '.join(self.foreign)}), which rows "
                "without padding do not read."
            )
        return self.reach

    def tensor(self, rows: int, length: int, name: str, always: bool) -> Any:
        """The mask of padded rows, as the replaced implementation makes it; None = causal.

        Args:
            rows, length: of the batch.
            name: of the module that reads it.
            always: also where the implementation needs none.

        Raises:
            ModelError: see `checked`.
        """
        window, chunk = self.checked(name).within(length)
        device = self._made_with["device"]
        function = masking_utils.causal_mask_function
        if window is not None:
            function = masking_utils.sliding_window_causal_mask_function(window)
        elif chunk is not None:
            none = torch.zeros(rows, dtype=torch.int64, device=device)
            function = masking_utils.chunked_causal_mask_function(chunk, none)
        sizes = {"batch_size": rows, "q_length": length, "kv_length": length}
        return ALL_MASK_ATTENTION_FUNCTIONS[self._base](
            **{
                **self._made_with,
                **sizes,
                "q_offset": 0,
                "kv_offset": 0,
                "mask_function": function,
                "attention_mask": None,
                "local_size": window or chunk,
                "allow_is_causal_skip": not always,
            }
        )


def _parts(function: Callable[..., Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The parts of a mask function: who made each, and the values that it closes over."""
    maker = function.__qualname__.split(".<locals>")[0]
    names = function.__code__.co_freevars
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    values = dict(zip(names, cells, strict=True))
    inner = [
        f for v in values.values() for f in (v if isinstance(v, tuple) else (v,)) if callable(f)
    ]
    if maker == "or_masks":  # attention within images, say: nothing, where there are none
        inner = [function for function in inner if not _of_no_block(function)]
        if len(inner) == 1:
            yield from _parts(inner[0])
            return
    if maker in _COMBINED:
        for function in inner:
            yield from _parts(function)
        return
    yield maker, values


def _of_no_block(function: Callable[..., Any]) -> bool:
    """Whether a part lets tokens of one block see each other, and no token is of a block."""
    if not function.__qualname__.startswith("blockwise_overlay."):
        return False
    (blocks,) = (cell.cell_contents for cell in function.__closure__ or ())
    return not bool((blocks >= 0).any())
