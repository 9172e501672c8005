"""Seeded inputs of a benchmark: ready hidden states, heads, targets, a reference nearby.

A case is a shape and nothing else; `build` draws the same numbers for it every time. Logits have
the standard deviation `logit_std` whatever D is, and the reference's differ from the policy's by
`log_ratio_std`, so that the KL is about half its square at every shape: the state of a policy
early in training, where the loss is not saturated and rounding shows.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

LOSSES = ("dpo", "tdpo2")
IGNORE = -100


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is computed: one loss, forward + backward, from ready hidden states.

    Attributes:
        loss: "dpo" or "tdpo2".
        tokens: N, masked ones included; all sequences have the length N / (2 · pairs).
        dim, vocab: D and V.
        pairs: preference pairs in the call.
        dtype: of hidden states and heads.
        frozen: whether the head gets no gradient.
        masked: share of tokens that are not scored, from the front of each sequence (a prompt).
        cached_ref: whether the reference's log-probs are known beforehand.
        logit_std, log_ratio_std: see the module.
        head: name of the model whose head has this shape, for the table.
    """

    loss: str
    tokens: int
    dim: int
    vocab: int
    pairs: int = 1
    dtype: str = "float32"
    frozen: bool = False
    masked: float = 0.0
    cached_ref: bool = False
    logit_std: float = 3.0
    log_ratio_std: float = 0.1
    head: str = ""

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ValueError(f"loss must be one of {LOSSES}, got {self.loss!r}")
        if self.tokens % (2 * self.pairs):
            raise ValueError(f"{self.tokens} tokens are not {2 * self.pairs} equal sequences")
        if self.cached_ref and self.loss != "dpo":
            raise ValueError("a cached reference serves DPO only: a KL needs its distribution")

    @property
    def length(self) -> int:
        """Tokens of a sequence."""
        return self.tokens // (2 * self.pairs)

    @property
    def skipped(self) -> int:
        """Unscored tokens at the front of each sequence."""
        return min(self.length - 1, round(self.masked * self.length))

    @property
    def scored(self) -> int:
        return 2 * self.pairs * (self.length - self.skipped)

    @property
    def weight_grad_bytes(self) -> int:
        """Bytes of the gradient of the head, which every way owes; 0 where the head is frozen."""
        return 0 if self.frozen else self.vocab * self.dim * getattr(torch, self.dtype).itemsize

    @property
    def title(self) -> str:
        """One line for tables and progress."""
        parts = [self.loss.upper(), "frozen head" if self.frozen else "trainable head"]
        parts += ["cached reference"] if self.cached_ref else []
        parts += [f"{self.masked:.0%} masked"] if self.masked else []
        pairs = f"{self.pairs} pair" + "s" * (self.pairs > 1)
        parts += [f"{pairs} of {self.length} + {self.length} tokens"]
        parts += [f"V {self.vocab}, D {self.dim}" + (f" ({self.head})" if self.head else "")]
        return ", ".join([*parts, self.dtype])

    def cut(self, tokens: int) -> "Case":
        """The same case with at most `tokens` tokens, in equal sequences of one at least."""
        length = max(1, min(self.tokens, tokens) // (2 * self.pairs))
        return replace(self, tokens=2 * self.pairs * length)


@dataclass
class Problem:
    """The tensors of a case; rows are all chosen sequences, then all rejected ones.

    Attributes:
        hidden: (N, D), with a gradient; ref_hidden: (N, D) without.
        weight: (V, D), with a gradient unless frozen; ref_weight: (V, D) without, the same numbers
            in their own memory.
        labels: (N,) int64 targets, `IGNORE` where a token is not scored.
        targets: (N,) int64, a class in every place.
        segments: (N,) int64, 2i chosen of pair i, 2i + 1 rejected, −1 not scored.
        ref_logp: (N,) fp32 where the case has a cached reference.
    """

    case: Case
    hidden: Tensor
    weight: Tensor
    ref_hidden: Tensor
    ref_weight: Tensor
    labels: Tensor
    targets: Tensor
    segments: Tensor
    ref_logp: Tensor | None = None

    @property
    def scored(self) -> Tensor:
        """(N,) bool."""
        return self.segments >= 0

    def clear(self) -> None:
        """No gradients, so that every way pays for its own."""
        self.hidden.grad = self.weight.grad = None


def build(case: Case, device: str = "cpu", seed: int = 0) -> Problem:
    """The inputs of a case, drawn on the device itself."""
    draw = torch.Generator(device).manual_seed(seed)
    dtype = getattr(torch, case.dtype)

    def normal(rows: int, scale: float) -> Tensor:
        return torch.randn(rows, case.dim, generator=draw, device=device).mul_(scale).to(dtype)

    hidden = normal(case.tokens, 1.0)
    ref_hidden = (hidden + normal(case.tokens, case.log_ratio_std / case.logit_std)).to(dtype)
    weight = normal(case.vocab, case.logit_std / math.sqrt(case.dim))
    targets = torch.randint(0, case.vocab, (case.tokens,), generator=draw, device=device)
    row = torch.arange(2 * case.pairs, device=device)
    side = 2 * (row % case.pairs) + (row >= case.pairs)
    place = torch.arange(case.length, device=device)
    segments = torch.where(place >= case.skipped, side[:, None], -1).flatten()
    problem = Problem(
        case=case,
        hidden=hidden.requires_grad_(),
        weight=weight.clone().requires_grad_(not case.frozen),
        ref_hidden=ref_hidden,
        ref_weight=weight,
        labels=torch.where(segments >= 0, targets, IGNORE),
        targets=targets,
        segments=segments,
    )
    if case.cached_ref:
        problem.ref_logp = _reference_logp(problem)
    return problem


def _reference_logp(problem: Problem, rows: int = 256) -> Tensor:
    """(N,) fp32 by blocks of rows, from fp32 logits."""
    found = []
    for start in range(0, len(problem.targets), rows):
        z = problem.ref_hidden[start : start + rows].float() @ problem.ref_weight.float().T
        target = problem.targets[start : start + rows, None]
        found.append(z.log_softmax(-1).gather(1, target).squeeze(1))
    return torch.cat(found)
