"""What is trained: lengths of a pair, the body that reads it, and rows of these lengths."""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
TOKENIZER = ROOT / "prefkit" / "demo" / "assets" / "model"
WORDS = 1000  # one-token words of the rows that need exact lengths
# The bodies that are built where no model is given. SmolLM2-135M's shape; and one so small that the
# vocabulary is what counts.
BODIES: dict[str, dict[str, Any]] = {
    "smollm2": {
        "vocab_size": 49_152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "tie_word_embeddings": True,
        "max_position_embeddings": 8192,
    },
    "tiny": {
        "vocab_size": 128_256,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "tie_word_embeddings": False,
        "max_position_embeddings": 65_536,
    },
    # Llama-3.2-1B's shape.
    "llama-1b": {
        "vocab_size": 128_256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": True,
        "max_position_embeddings": 131_072,
    },
    "minute": {
        "vocab_size": 1024,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        "max_position_embeddings": 1024,
    },
}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Tokens of the shared prefix, the chosen and the rejected side; and the body they run in.

    Attributes:
        checkpointing: of activations, for every way.
        bf16: mixed precision; weights stay fp32.
        exact: rows of words of one token, so that lengths are exactly these.
        device: "cpu" or "cuda".
    """

    prefix: int
    chosen: int
    rejected: int
    words: str = ""
    body: str = "smollm2"
    checkpointing: bool = False
    bf16: bool = False
    exact: bool = False
    device: str = "cpu"


SHAPES = {
    "steps": Shape(prefix=512, chosen=20, rejected=25, words="a long prefix and one step a side"),
    "answers": Shape(prefix=32, chosen=300, rejected=280, words="a short prompt and long answers"),
}


def rows(shape: Shape, tokenizer: Any, count: int) -> list[dict[str, str]]:
    """Pairs of about the shape's lengths, cut from the project's own pages.

    From the embedded pairs where the tokenizer is the embedded one, which knows arithmetic alone.
    """
    pages = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "CHANGELOG.md"]
    text = "\n".join(page.read_text("utf-8") for page in pages)
    if len(tokenizer) < 100:
        solved = map(json.loads, (TOKENIZER.parent / "pairs.jsonl").read_text("utf-8").splitlines())
        text = "".join(row["prompt"] + row["full_chosen"] for row in solved)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    lengths = (shape.prefix, shape.chosen, shape.rejected)
    ids = ids * -(-(sum(lengths) + 37 * count) // len(ids))  # long rows repeat the pages
    found = []
    for i in range(count):
        place, parts = 37 * i, []
        for length in lengths:
            parts.append(tokenizer.decode(ids[place : place + length]))
            place += length
        found.append({"prompt": parts[0], "chosen": parts[1], "rejected": parts[2]})
    return found


def word_tokenizer() -> Any:
    """Words w0, w1, … of one token each, whatever stands beside them."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ("<unk>", "<eos>", *(f"w{i}" for i in range(WORDS)))
    ids = {name: i for i, name in enumerate(names)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"unk_token": "<unk>", "eos_token": "<eos>", "pad_token": "<eos>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def word_rows(shape: Shape, count: int) -> list[dict[str, str]]:
    """Pairs of exactly the shape's lengths; every row and side its own words."""
    draw = random.Random(0)

    def words(length: int) -> str:
        return "".join(f" w{draw.randrange(WORDS)}" for _ in range(length))

    lengths = {"prompt": shape.prefix, "chosen": shape.chosen, "rejected": shape.rejected}
    return [{name: words(length) for name, length in lengths.items()} for _ in range(count)]
