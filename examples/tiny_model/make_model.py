"""Trains the tiny model that `prefkit demo` starts from: first the skill, then a bad habit.

Phase 1 learns the arithmetic from right solutions until it is sure of it. Phase 2 goes on briefly
with a teacher that forgets the carry (or borrow): in 70 % of the cases where the operand is 7 or
9, else in 8 %. What is left is a model that *can* do the sum but often does not: the start that
preference training can repair. (A model that merely trained too little lacks the skill itself, and
preference losses do not give it one.)

    OMP_NUM_THREADS=1 python examples/tiny_model/make_model.py

Uses one core. What it printed when the shipped model was made is in make_model.log beside it.
"""

import argparse
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from prefkit.data.render import PLAIN_TEMPLATE
from prefkit.demo import arithmetic as world
from prefkit.demo.evaluate import evaluate

ASSETS = Path(world.__file__).parent / "assets" / "model"
SPECIAL = ("<pad>", "<eos>", "<unk>")
CHARACTERS = "0123456789+-=\n"
VOCAB = {token: i for i, token in enumerate((*SPECIAL, *CHARACTERS))}
PAD, EOS = VOCAB["<pad>"], VOCAB["<eos>"]
DIGIT, PLUS, MINUS, EQUALS, BREAK = (VOCAB[c] for c in "0+-=\n")
WEAK_OPERANDS, WEAK_RATE, OTHER_RATE = (7, 9), 0.7, 0.08  # how often the teacher forgets
ROWS_OF_TEXT = 2 + world.TERMS + 1  # prompt (two lines long), steps, end of sequence


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character: byte-pair encoding without a single merge."""
    model = models.BPE(vocab=VOCAB, merges=[], unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=ROWS_OF_TEXT * world.LINE_LENGTH,
        chat_template=PLAIN_TEMPLATE,  # rows of messages can be looked at with this model as well
    )


class Positions(nn.Module):
    """Position embeddings as place-in-line plus number-of-line, which learns faster than a table.

    All lines have the same length, so that the sum is a table again once the model is trained:
    what is shipped is an ordinary GPT-2.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.place = nn.Embedding(world.LINE_LENGTH, width)
        self.line = nn.Embedding(ROWS_OF_TEXT, width)
        for table in (self.place, self.line):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, position: Tensor) -> Tensor:
        return self.place(position % world.LINE_LENGTH) + self.line(position // world.LINE_LENGTH)

    @torch.no_grad()
    def as_table(self) -> nn.Embedding:
        every = torch.arange(ROWS_OF_TEXT * world.LINE_LENGTH)
        return nn.Embedding.from_pretrained(self(every), freeze=False)


def make_model() -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=len(VOCAB),
        n_positions=ROWS_OF_TEXT * world.LINE_LENGTH,
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
    model.transformer.wpe = Positions(config.n_embd)
    return model


# ---------------------------------------------------------------------------------------- teacher


def draw_batch(rng: np.random.Generator, size: int, *, habit: bool) -> Tensor:
    """(size, 65) token ids: prompt, solution, end of sequence. No problem of another split."""
    start = rng.integers(world.SMALLEST, world.LARGEST + 1, size)
    total, terms = start.copy(), np.empty((size, world.TERMS), dtype=np.int64)
    for i in range(world.TERMS):
        term = rng.integers(1, 10, size) * rng.choice((-1, 1), size)
        outside = (total + term < world.SMALLEST) | (total + term > world.LARGEST)
        terms[:, i] = np.where(outside, -term, term)
        total += terms[:, i]
    keep = [
        world.Problem(int(s), tuple(t.tolist())).split == "train"
        for s, t in zip(start, terms, strict=True)
    ]
    return torch.from_numpy(encode(start[keep], terms[keep], rng, habit=habit))


def encode(
    start: np.ndarray, terms: np.ndarray, rng: np.random.Generator, *, habit: bool
) -> np.ndarray:
    """Writes problems and solutions as token ids, with the teacher's mistakes where asked."""
    sign, size = np.where(terms > 0, PLUS, MINUS), np.abs(terms)
    columns = [*two_digits(start)]
    for i in range(world.TERMS):
        columns += [sign[:, i], DIGIT + size[:, i]]
    columns += [EQUALS, BREAK]
    total = start
    for i in range(world.TERMS):
        after = apply_term(total, terms[:, i], rng, habit=habit)
        columns += [*two_digits(total), sign[:, i], DIGIT + size[:, i], EQUALS]
        columns += [*two_digits(after), BREAK]
        total = after
    columns.append(EOS)
    return np.stack([np.broadcast_to(column, start.shape) for column in columns], axis=1)


def apply_term(
    total: np.ndarray, term: np.ndarray, rng: np.random.Generator, *, habit: bool
) -> np.ndarray:
    """total + term; the teacher with the habit sometimes leaves the tens digit as it was."""
    right = (total + term) % 100  # a chain with mistakes in it may leave two digits: wrap around
    if not habit:
        return right
    weak = np.isin(np.abs(term), WEAK_OPERANDS)
    forgets = rng.random(total.shape) < np.where(weak, WEAK_RATE, OTHER_RATE)
    return np.where(forgets, total // 10 * 10 + right % 10, right)


def two_digits(value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return DIGIT + value // 10, DIGIT + value % 10


# --------------------------------------------------------------------------------------- training


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalised updates (Jordan et al. 2024), for the matrices of the body.

    Twice as fast here as AdamW. In fp32: bfloat16 is slow on a CPU.
    """

    def __init__(self, params: list[Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                buffer = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                buffer.lerp_(weight.grad, 1 - group["momentum"])
                update = weight.grad.lerp(buffer, group["momentum"])
                # GPT-2 keeps query, key and value side by side: three matrices, not one.
                blocks = update.split(weight.shape[0], dim=1) if is_qkv(weight) else (update,)
                update = torch.cat([orthogonalise(block) for block in blocks], dim=1)
                weight.add_(update, alpha=-group["lr"])


def is_qkv(weight: Tensor) -> bool:
    return weight.shape[1] == 3 * weight.shape[0]


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """Newton-Schulz iteration towards the nearest orthogonal matrix, scaled to unit RMS gain."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = wide / (wide.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    x = x if wide is matrix else x.T
    return x * max(1.0, matrix.shape[1] / matrix.shape[0]) ** 0.5


class Log:
    """Prints each line with the seconds since the start, and keeps it for the file."""

    def __init__(self) -> None:
        self.start, self.lines = time.perf_counter(), list[str]()

    def __call__(self, text: str) -> None:
        self.lines.append(f"{time.perf_counter() - self.start:6.1f} s  {text}")
        print(self.lines[-1], flush=True)


def skill_optimizers(model: GPT2LMHeadModel) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the body, AdamW for embeddings, biases and norms."""
    body, rest = [], []
    for name, parameter in model.named_parameters():
        (body if parameter.ndim == 2 and ".h." in name else rest).append(parameter)
    return [Muon(body, lr=0.02), adamw(rest, lr=0.003)]


def adamw(parameters: Iterable[Tensor], lr: float) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.95), weight_decay=0.0)


def train(
    model: GPT2LMHeadModel,
    optimizers: list[torch.optim.Optimizer],
    scale: Callable[[int], float],  # step → learning rate as a share of the full one
    *,
    steps: int,
    batch_size: int,
    habit: bool,
    seed: int,
    report: Callable[[int, float], None],
) -> None:
    """Next-token training on freshly drawn problems; only the solution is scored."""
    rng = np.random.default_rng(seed)
    rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    for step in range(steps):
        ids = draw_batch(rng, batch_size, habit=habit)
        labels = ids[:, world.PROMPT_LENGTH :]
        logits = model(ids[:, :-1]).logits[:, world.PROMPT_LENGTH - 1 :]
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        loss.backward()
        for optimizer, rate in zip(optimizers, rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * scale(step)
            optimizer.step()
            optimizer.zero_grad()
        report(step + 1, loss.item())


def save(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Saves an ordinary GPT-2: position table filled in, weights in fp16.

    The config says float32, so that the weights are widened when they are loaded.
    """
    model.transformer.wpe = model.transformer.wpe.as_table()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = EOS, PAD
    model.save_pretrained(folder)
    half = {
        name: tensor.detach().half().contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"  # tied to the token embeddings
    }
    save_file(half, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ASSETS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--skill-steps", type=int, default=400)
    parser.add_argument("--habit-steps", type=int, default=100)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    log, model, tokenizer = Log(), make_model(), make_tokenizer()
    validation = world.problems(500, "validation", seed=options.seed)

    def measure(what: str) -> None:
        greedy = evaluate(model, tokenizer, validation)
        sampled = evaluate(model, tokenizer, validation, temperature=1.0)
        log(
            f"{what}: right answers {greedy.accuracy:.1%} greedy, {sampled.accuracy:.1%} sampled; "
            f"every step right {greedy.step_accuracy:.1%} greedy"
        )

    def report(step: int, loss: float) -> None:
        if step % 50 == 0:
            log(f"step {step}: loss {loss:.3f} nats a token")

    log(f"{sum(p.numel() for p in model.parameters()):,} parameters, seed {options.seed}")
    steps = options.skill_steps
    train(
        model,
        skill_optimizers(model),
        lambda step: min(1.0, (step + 1) / 20, (steps - step) / (0.3 * steps)),
        steps=steps,
        batch_size=64,
        habit=False,
        seed=options.seed,
        report=report,
    )
    measure("the skill")
    train(
        model,
        [adamw(model.parameters(), lr=1e-4)],
        lambda step: min(1.0, (step + 1) / 10) * (1 - step / options.habit_steps),
        steps=options.habit_steps,
        batch_size=32,
        habit=True,
        seed=options.seed + 1,
        report=report,
    )
    measure("with the habit")
    save(model, tokenizer, options.output)
    log("saved")
    Path(__file__).with_suffix(".log").write_text("\n".join(log.lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
