"""A GPT-2 that reads characters in lines, and the teacher whose mistakes it can learn.

For worlds of lines of eight characters (prefkit/demo/lines.py): the demo's model and the one that
`benchmarks/papers` starts from differ in their worlds and lengths alone.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from prefkit.data.text.template import PLAIN_TEMPLATE
from prefkit.demo.lines import LINE_LENGTH

SPECIAL = ("<pad>", "<eos>", "<unk>")
CHARACTERS = "0123456789+-=\n"  # a world's own follow these, so that these have one id everywhere


def vocabulary(own: str = "") -> dict[str, int]:
    """Token → id: the special tokens, the characters of every world, those of one world."""
    return {token: i for i, token in enumerate((*SPECIAL, *CHARACTERS, *own))}


PAD, EOS, _ = (vocabulary()[token] for token in SPECIAL)
DIGIT, PLUS, MINUS, EQUALS, BREAK = (vocabulary()[character] for character in "0+-=\n")


def make_tokenizer(vocab: dict[str, int], longest: int) -> PreTrainedTokenizerFast:
    """One token a character: byte-pair encoding without a single merge."""
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=longest,
        chat_template=PLAIN_TEMPLATE,  # rows of messages can be looked at with this model as well
    )


class Positions(nn.Module):
    """Position embeddings as place-in-line plus number-of-line, which learns faster than a table.

    All lines have the same length, so that the sum is a table again once the model is trained:
    what is saved is an ordinary GPT-2.

    Args:
        width: of the embeddings.
        longest: positions there are.
        shift: what to move all positions by, so that lines of steps begin at multiples of a line.
    """

    def __init__(self, width: int, longest: int, shift: int = 0) -> None:
        super().__init__()
        self.longest, self.shift = longest, shift
        self.place = nn.Embedding(LINE_LENGTH, width)
        self.line = nn.Embedding((longest + shift - 1) // LINE_LENGTH + 1, width)
        for table in (self.place, self.line):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, position: Tensor) -> Tensor:
        at = position + self.shift
        return self.place(at % LINE_LENGTH) + self.line(at // LINE_LENGTH)

    @torch.no_grad()
    def as_table(self) -> nn.Embedding:
        return nn.Embedding.from_pretrained(self(torch.arange(self.longest)), freeze=False)


def make_model(vocab: dict[str, int], longest: int, shift: int = 0) -> GPT2LMHeadModel:
    """A GPT-2 of 0.6 M parameters with factorised positions, at random."""
    config = GPT2Config(
        vocab_size=len(vocab),
        n_positions=longest,
        n_embd=128,
        n_layer=3,
        n_head=4,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        resid_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    model = GPT2LMHeadModel(config)
    model.transformer.wpe = Positions(config.n_embd, longest, shift)
    return model


@dataclass(frozen=True, kw_only=True)
class Habit:
    """How often a teacher forgets the carry (or borrow), and for how long the model listens.

    Attributes:
        weak: the operands it is bad at.
        weak_rate, other_rate: share of carries and borrows forgotten there and elsewhere.
        steps, batch_size, learning_rate: of the training on it, AdamW, linear decay.
    """

    weak: tuple[int, ...] = (7, 9)
    weak_rate: float = 0.6
    other_rate: float = 0.0
    steps: int = 60
    batch_size: int = 24
    learning_rate: float = 1e-4


def problem_columns(start: np.ndarray, terms: np.ndarray) -> list[Any]:
    """The ids of prompts, a column a character, of start values (n,) and terms (n, t)."""
    columns: list[Any] = [*two_digits(start)]
    for term in terms.T:
        columns += [np.where(term > 0, PLUS, MINUS), DIGIT + np.abs(term)]
    return [*columns, EQUALS, BREAK]


def step_columns(
    start: np.ndarray, terms: np.ndarray, rng: np.random.Generator, habit: Habit | None
) -> list[Any]:
    """The ids of solutions, a column a character, with the teacher's mistakes where asked."""
    columns: list[Any] = []
    total = start
    for term in terms.T:
        after = apply_term(total, term, rng, habit)
        columns += [*two_digits(total), np.where(term > 0, PLUS, MINUS), DIGIT + np.abs(term)]
        columns += [EQUALS, *two_digits(after), BREAK]
        total = after
    return columns


def as_rows(columns: list[Any], count: int) -> np.ndarray:
    """(count, len(columns)) ids; a column that is one id is the same in every row."""
    return np.stack([np.broadcast_to(column, (count,)) for column in columns], axis=1)


def apply_term(
    total: np.ndarray, term: np.ndarray, rng: np.random.Generator, habit: Habit | None
) -> np.ndarray:
    """total + term; the teacher with the habit sometimes leaves the tens digit as it was."""
    right = (total + term) % 100  # a chain with mistakes in it may leave two digits: wrap around
    if habit is None:
        return right
    weak = np.isin(np.abs(term), habit.weak)
    forgets = rng.random(total.shape) < np.where(weak, habit.weak_rate, habit.other_rate)
    return np.where(forgets, total // 10 * 10 + right % 10, right)


def two_digits(value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return DIGIT + value // 10, DIGIT + value % 10
