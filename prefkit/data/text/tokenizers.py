"""What exact offsets need of a tokenizer, and what it adds to a text by itself."""

import copy
from typing import Any

from tokenizers.processors import TemplateProcessing

from prefkit.errors import PrefkitError


def check_tokenizer(tokenizer: Any) -> None:
    """Refuse tokenizers that cannot say which characters a token holds.

    Raises:
        PrefkitError: the tokenizer is not a fast one.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise PrefkitError(
            f"{type(tokenizer).__name__} is not a fast tokenizer and gives no character offsets, "
            "without which the scored tokens cannot be found exactly. Save the model with a "
            "tokenizer.json (AutoTokenizer loads it as a fast tokenizer)."
        )


def untrimmed(tokenizer: Any) -> Any:
    """The tokenizer, or a copy of it that leaves white space in the offsets.

    Post-processors with trim_offsets (RoBERTa, OPT, …) take white space out of them, and a token of
    nothing but white space is then nowhere. Here nothing else is wanted of a post-processor: the
    special tokens it would add are not asked for.
    """
    processor = tokenizer.backend_tokenizer.post_processor
    if processor is None or b'"trim_offsets":true' not in processor.__getstate__():
        return tokenizer
    copied = copy.deepcopy(tokenizer)
    copied.backend_tokenizer.post_processor = TemplateProcessing(single="$A", pair="$A $B")
    return copied


def leading_ids(tokenizer: Any) -> list[int]:
    """What the tokenizer puts before a text by itself (a BOS token, for most that have one)."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a", add_special_tokens=True)["input_ids"]
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return list(full[:start])
    return []
