"""Lets a model write solutions and measures it: right answers and steps, distance to a start."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.papers import world
from prefkit.demo.evaluate import write_texts
from prefkit.demo.lines import Verdict
from prefkit_kernels import token_stats


@dataclass(frozen=True)
class Transcript:
    """One problem, what the model wrote (without the end-of-sequence token), and the verdict."""

    problem: world.Problem
    text: str
    verdict: Verdict
    ended: bool


def solve(
    model: Any,
    tokenizer: Any,
    problems: Sequence[world.Problem],
    *,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[Transcript]:
    """One solution a problem, in their order.

    Args:
        temperature: 0 decodes greedily; above 0 samples, without top-k or top-p.
        seed: of the sampling; the caller's random state is left as it was.
    """
    written = write_texts(
        model,
        tokenizer,
        [problem.prompt for problem in problems],
        new_tokens=world.SOLUTION_LENGTH + 1,
        temperature=temperature,
        seed=seed,
    )
    return [
        Transcript(problem, text, world.check(problem, text), ended)
        for problem, (text, ended) in zip(problems, written, strict=True)
    ]


@torch.inference_mode()
def sequential_kl(
    reference: Any, policy: Any, tokenizer: Any, written: Sequence[Transcript]
) -> list[float]:
    """KL(reference‖policy) in nats a solution: exact at each token, summed along each solution.

    Along solutions that the reference sampled, the mean estimates the KL of whole solutions without
    the noise of log-ratios (the sum over the vocabulary is exact; TDPO, arXiv 2404.11999, eq. 13).

    Args:
        written: the reference's own samples; those that did not end are cut where they stand.
    """
    found: list[float] = []
    for at in range(0, len(written), 128):
        batch = written[at : at + 128]
        texts = [t.problem.prompt + t.text + tokenizer.eos_token * t.ended for t in batch]
        encoded = tokenizer(texts, return_tensors="pt", padding=True, padding_side="right")
        ids, mask = encoded["input_ids"], encoded["attention_mask"]
        targets = ids[:, 1:].masked_fill(mask[:, 1:] == 0, -100)
        targets[:, : world.PROMPT_LENGTH - 1] = -100
        hidden = [
            model.transformer(input_ids=ids, attention_mask=mask).last_hidden_state[:, :-1]
            for model in (policy, reference)
        ]
        stats = token_stats(
            hidden[0].flatten(0, 1),
            policy.lm_head.weight,
            targets.flatten(),
            ref_hidden=hidden[1].flatten(0, 1),
            ref_weight=reference.lm_head.weight,
            outputs=("kl",),
        )
        assert stats.kl is not None
        found += stats.kl.view(targets.shape).sum(1).tolist()
    return found


def share(flags: Sequence[bool]) -> float:
    """Share of true flags, in [0, 1]."""
    return sum(flags) / len(flags)
