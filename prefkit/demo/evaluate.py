"""Lets a model solve problems of the small world and checks every step it writes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from prefkit.demo.arithmetic import SOLUTION_LENGTH, Problem, check
from prefkit.demo.lines import Verdict


@dataclass(frozen=True)
class Transcript:
    """One problem, what the model wrote (without the end-of-sequence token), and the verdict.

    `ended` tells whether the model closed its solution with the end-of-sequence token.
    """

    problem: Problem
    text: str
    verdict: Verdict
    ended: bool


@dataclass(frozen=True)
class Evaluation:
    """Transcripts in the order of the problems; `samples` of each problem stand together."""

    transcripts: tuple[Transcript, ...]
    samples: int

    @property
    def accuracy(self) -> float:
        """Share of solutions, in [0, 1], whose last line gives the right answer."""
        return _mean([t.verdict.answer_right for t in self.transcripts])

    @property
    def step_accuracy(self) -> float:
        """Share of solutions, in [0, 1], without a single wrong, missing or surplus line."""
        return _mean([t.verdict.all_steps_right for t in self.transcripts])


def evaluate(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    *,
    temperature: float = 0.0,
    samples: int = 1,
    seed: int = 0,
    batch_size: int = 512,
) -> Evaluation:
    """Solves the problems with `model.generate` (batched, cached keys and values).

    Args:
        model, tokenizer: a causal language model and its tokenizer, with an end-of-sequence token.
        temperature: 0 decodes greedily; above 0 samples from the model, without top-k or top-p.
        samples: solutions drawn for each problem.
        seed: of the sampling; the caller's random state is left as it was.
        batch_size: solutions written at a time.

    The model is put back into the mode (training or not) it was in.
    """
    asked = [problem for problem in problems for _ in range(samples)]
    written = write_texts(
        model,
        tokenizer,
        [problem.prompt for problem in asked],
        new_tokens=SOLUTION_LENGTH + 1,
        temperature=temperature,
        seed=seed,
        batch_size=batch_size,
    )
    transcripts = tuple(
        Transcript(problem, text, check(problem, text), ended)
        for problem, (text, ended) in zip(asked, written, strict=True)
    )
    return Evaluation(transcripts, samples)


@torch.inference_mode()
def write_texts(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
    batch_size: int = 512,
) -> list[tuple[str, bool]]:
    """What a model writes after prompts of one length in tokens, and whether it came to an end.

    Args:
        model, tokenizer: a causal language model and its tokenizer, with an end-of-sequence token.
        prompts: each gives one text, in their order.
        new_tokens: the most tokens of a text, the end-of-sequence token included.
        temperature, seed, batch_size: as in `evaluate`.

    Returns:
        Texts without the end-of-sequence token, each with whether the model wrote that token.
    """
    how: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        how = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    texts: list[tuple[str, bool]] = []
    was_training = model.training
    model.eval()
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for at in range(0, len(prompts), batch_size):
                inputs = tokenizer(list(prompts[at : at + batch_size]), return_tensors="pt")
                written = model.generate(
                    input_ids=inputs["input_ids"].to(model.device),
                    attention_mask=inputs["attention_mask"].to(model.device),
                    max_new_tokens=new_tokens,
                    eos_token_id=tokenizer.eos_token_id,
                    pad_token_id=tokenizer.eos_token_id,  # what follows the end
                    use_cache=True,
                    **how,
                )[:, inputs["input_ids"].shape[1] :]
                ended = (written == tokenizer.eos_token_id).any(dim=1).tolist()
                decoded = tokenizer.batch_decode(written, skip_special_tokens=True)
                texts += zip(decoded, ended, strict=True)
    finally:
        model.train(was_training)
    return texts


def _mean(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags) if flags else 0.0
