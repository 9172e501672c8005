"""How a model of lines learns a skill and takes up a habit, and how it is saved."""

import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from examples.tiny_model.line_model import EOS, PAD, Habit, Positions

# A batch of ids (n, L): (random generator, rows asked for, habit of the teacher or None) → ids
Draw = Callable[[np.random.Generator, int, Habit | None], Tensor]
Report = Callable[[int, float], None]  # (step, loss)


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


def adamw(parameters: Iterable[Tensor], lr: float) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.95), weight_decay=0.0)


def learn_skill(
    model: GPT2LMHeadModel,
    draw: Draw,
    prompt_length: int,
    *,
    steps: int,
    batch_size: int,
    seed: int,
    report: Report | None = None,
) -> None:
    """Learns from right solutions: Muon for the matrices of the body, AdamW for the rest."""
    body, rest = [], []
    for name, parameter in model.named_parameters():
        (body if parameter.ndim == 2 and ".h." in name else rest).append(parameter)
    _learn(
        model,
        [Muon(body, lr=0.02), adamw(rest, lr=0.003)],
        lambda step: min(1.0, (step + 1) / 20, (steps - step) / (0.3 * steps)),
        lambda rng: draw(rng, batch_size, None),
        prompt_length,
        steps=steps,
        seed=seed,
        report=report,
    )


def take_up(
    model: GPT2LMHeadModel,
    habit: Habit,
    draw: Draw,
    prompt_length: int,
    *,
    seed: int,
    report: Report | None = None,
) -> None:
    """Trains a habit into a model, in place."""
    _learn(
        model,
        [adamw(model.parameters(), lr=habit.learning_rate)],
        lambda step: min(1.0, (step + 1) / 10) * (1 - step / habit.steps),
        lambda rng: draw(rng, habit.batch_size, habit),
        prompt_length,
        steps=habit.steps,
        seed=seed,
        report=report,
    )


def _learn(
    model: GPT2LMHeadModel,
    optimizers: list[torch.optim.Optimizer],
    scale: Callable[[int], float],  # step → learning rate as a share of the full one
    draw: Callable[[np.random.Generator], Tensor],  # → (n, L) ids
    prompt_length: int,
    *,
    steps: int,
    seed: int,
    report: Report | None,
) -> None:
    """Next-token training on freshly drawn problems; only the solution is scored."""
    rng = np.random.default_rng(seed)
    rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    for step in range(steps):
        ids = draw(rng)
        logits = model(ids[:, :-1]).logits[:, prompt_length - 1 :]
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, prompt_length:].flatten())
        loss.backward()
        for optimizer, rate in zip(optimizers, rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * scale(step)
            optimizer.step()
            optimizer.zero_grad()
        if report is not None:
            report(step + 1, loss.item())


def save(
    model: GPT2LMHeadModel,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    *,
    half: bool = False,
) -> None:
    """Saves an ordinary GPT-2: position table filled in.

    Args:
        half: stores fp16 weights; the config says float32, so that they are widened when loaded.
    """
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


class Log:
    """Prints each line with the seconds since the start, and keeps it for the file."""

    def __init__(self) -> None:
        self.start, self.lines = time.perf_counter(), list[str]()

    def __call__(self, text: str) -> None:
        self.lines.append(f"{time.perf_counter() - self.start:6.1f} s  {text}")
        print(self.lines[-1], flush=True)

    def write(self, path: Path) -> None:
        path.write_text("\n".join(self.lines) + "\n", encoding="utf-8")
