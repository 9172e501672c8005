"""The models that the comparison starts from: a shipped skill, and a bad habit a seed.

The skill (right arithmetic, both ways) takes a quarter of an hour of one core and is shipped
(benchmarks/papers/assets, made by `python -m benchmarks.papers.start`). The habit is trained in
each run, from its own seed: a teacher that forgets the carry or borrow where the operand is weak,
and hardly ever elsewhere. So errors are rare a step and common a solution, and every seed has a
start, a reference and pairs of its own.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.papers import world

ASSETS = Path(__file__).parent / "assets"
SPECIAL = ("<pad>", "<eos>", "<unk>")
CHARACTERS = "0123456789+-=\n<>"
VOCAB = {token: i for i, token in enumerate((*SPECIAL, *CHARACTERS))}
PAD, EOS = VOCAB["<pad>"], VOCAB["<eos>"]
DIGIT, PLUS, MINUS, EQUALS, BREAK, LEFT, RIGHT = (VOCAB[c] for c in "0+-=\n<>")
LENGTH = world.PROMPT_LENGTH + world.SOLUTION_LENGTH + 1  # the end-of-sequence token included
LONGEST = LENGTH + 2 * world.LINE_LENGTH + 5  # room for samples with a surplus line
# Lines of steps begin at multiples of 8 when everything is moved by this much.
SHIFT = -(world.PROMPT_LENGTH + 2) % world.LINE_LENGTH


@dataclass(frozen=True, kw_only=True)
class Habit:
    """How often a teacher forgets the carry, and for how long the model listens.

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


class Positions(nn.Module):
    """Position embeddings as place-in-line plus number-of-line, which learns faster than a table.

    All lines have the same length, so that the sum is a table again once the model is trained.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.place = nn.Embedding(world.LINE_LENGTH, width)
        self.line = nn.Embedding((LONGEST + SHIFT) // world.LINE_LENGTH + 1, width)
        for table in (self.place, self.line):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, position: Tensor) -> Tensor:
        at = position + SHIFT
        return self.place(at % world.LINE_LENGTH) + self.line(at // world.LINE_LENGTH)

    @torch.no_grad()
    def as_table(self) -> nn.Embedding:
        return nn.Embedding.from_pretrained(self(torch.arange(LONGEST)), freeze=False)


def make_tokenizer() -> Any:
    """One token a character: byte-pair encoding without a single merge."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    from prefkit.data.render import PLAIN_TEMPLATE

    tokenizer = Tokenizer(models.BPE(vocab=VOCAB, merges=[], unk_token="<unk>"))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=LONGEST,
        chat_template=PLAIN_TEMPLATE,
    )


def make_model() -> Any:
    """A GPT-2 of 0.6 M parameters with factorised positions, at random."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=len(VOCAB),
        n_positions=LONGEST,
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
    model: Any = GPT2LMHeadModel(config)
    model.transformer.wpe = Positions(config.n_embd)
    return model


# ---------------------------------------------------------------------------------------- teacher


def draw_batch(rng: np.random.Generator, size: int, habit: Habit | None) -> Tensor:
    """(size, 147) int64 ids: prompt, solution, end of sequence. Training problems only."""
    kept: list[np.ndarray] = []
    while len(kept) < size:
        start = rng.integers(world.SMALLEST, world.LARGEST + 1, 4 * size)
        shape = (4 * size, world.TERMS)
        terms = rng.integers(1, 10, shape) * rng.choice((-1, 1), shape)
        forward = start[:, None] + terms.cumsum(1)
        backward = start[:, None] + terms[:, ::-1].cumsum(1)
        both = np.concatenate([forward, backward], 1)
        inside = ((both >= world.SMALLEST) & (both <= world.LARGEST)).all(1)
        for one, of_one in zip(start[inside], terms[inside], strict=True):
            if world.Problem(int(one), tuple(of_one.tolist())).split == "train":
                kept.append(np.concatenate([[one], of_one]))
    rows = np.stack(kept[:size])
    return torch.from_numpy(encode(rows[:, 0], rows[:, 1:], rng, habit))


def encode(
    start: np.ndarray,  # (n,)
    terms: np.ndarray,  # (n, 14)
    rng: np.random.Generator,
    habit: Habit | None,
) -> np.ndarray:
    """(n, 147) ids of problems and solutions, with the teacher's mistakes where asked."""
    columns: list[Any] = [*_two_digits(start)]
    for term in terms.T:
        columns += [np.where(term > 0, PLUS, MINUS), DIGIT + np.abs(term)]
    backward = rng.random(start.shape) < 0.5
    columns += [EQUALS, BREAK, np.where(backward, LEFT, RIGHT), BREAK]
    total = start
    for term in np.where(backward[:, None], terms[:, ::-1], terms).T:
        after = _apply(total, term, rng, habit)
        columns += [*_two_digits(total), np.where(term > 0, PLUS, MINUS), DIGIT + np.abs(term)]
        columns += [EQUALS, *_two_digits(after), BREAK]
        total = after
    columns.append(EOS)
    return np.stack([np.broadcast_to(column, start.shape) for column in columns], axis=1)


def _apply(
    total: np.ndarray, term: np.ndarray, rng: np.random.Generator, habit: Habit | None
) -> np.ndarray:
    """total + term; the teacher with the habit sometimes leaves the tens digit as it was."""
    right = (total + term) % 100  # a chain with mistakes in it may leave two digits: wrap around
    if habit is None:
        return right
    weak = np.isin(np.abs(term), habit.weak)
    forgets = rng.random(total.shape) < np.where(weak, habit.weak_rate, habit.other_rate)
    return np.where(forgets, total // 10 * 10 + right % 10, right)


def _two_digits(value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return DIGIT + value // 10, DIGIT + value % 10


# --------------------------------------------------------------------------------------- training


def learn(
    model: Any,
    optimizers: list[torch.optim.Optimizer],
    scale: Any,  # step → learning rate as a share of the full one
    *,
    steps: int,
    batch_size: int,
    habit: Habit | None,
    seed: int,
    report: Any = None,  # (step, loss) → None
) -> None:
    """Next-token training on freshly drawn problems; only the solution is scored."""
    rng = np.random.default_rng(seed)
    rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    for step in range(steps):
        ids = draw_batch(rng, batch_size, habit)
        logits = model(ids[:, :-1]).logits[:, world.PROMPT_LENGTH - 1 :]
        labels = ids[:, world.PROMPT_LENGTH :]
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        loss.backward()
        for optimizer, rate in zip(optimizers, rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * scale(step)
            optimizer.step()
            optimizer.zero_grad()
        if report is not None:
            report(step + 1, loss.item())


def load_skill() -> tuple[Any, Any]:
    """The shipped model that makes no mistakes, widened to fp32, and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(ASSETS, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(ASSETS)


def take_up(model: Any, habit: Habit, seed: int) -> Any:
    """Trains the habit into the model, in place; returns it."""
    rate, steps = habit.learning_rate, habit.steps
    adamw = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
    learn(
        model,
        [adamw],
        lambda step: min(1.0, (step + 1) / 10) * (1 - step / steps),
        steps=steps,
        batch_size=habit.batch_size,
        habit=habit,
        seed=seed,
    )
    return model


def save(model: Any, tokenizer: Any, folder: Path, *, half: bool = False) -> None:
    """Saves an ordinary GPT-2; `half` stores fp16 weights that load as fp32."""
    from safetensors.torch import save_file

    if isinstance(model.transformer.wpe, Positions):
        model.transformer.wpe = model.transformer.wpe.as_table()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = EOS, PAD
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if not half:
        return
    tensors = {
        name: tensor.detach().half().contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"  # tied to the token embeddings
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def main() -> None:
    """Trains the skill and saves it as the asset."""
    from examples.tiny_model.make_model import Log, skill_optimizers

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ASSETS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=600)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    log, model, tokenizer, steps = Log(), make_model(), make_tokenizer(), options.steps

    def report(step: int, loss: float) -> None:
        if step % 25 == 0:
            log(f"step {step}: loss {loss:.4f} nats a token")

    log(f"{sum(p.numel() for p in model.parameters()):,} parameters, seed {options.seed}")
    learn(
        model,
        skill_optimizers(model),
        lambda step: min(1.0, (step + 1) / 20, (steps - step) / (0.3 * steps)),
        steps=steps,
        batch_size=40,
        habit=None,
        seed=options.seed,
        report=report,
    )
    save(model, tokenizer, options.output, half=True)
    log("saved")
    (options.output / "made.log").write_text("\n".join(log.lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
