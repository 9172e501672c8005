"""What the fused head holds, by the arithmetic of `prefkit_kernels` (docs/kernels.md, "Held").

N scored tokens, hidden width D, vocabulary V. The logits' buffers are bounded by the budget; what
else there is grows with N·D or V·D, and depends on the passes.
"""

from dataclasses import dataclass

import torch

from prefkit.plan.inputs.setting import Setting
from prefkit.plan.inputs.shape import ModelShape
from prefkit_kernels.core.buffers import (
    slice_budget,
    token_budget,
    token_chunks,
    token_tile,
    vocab_slices,
)
from prefkit_kernels.pair_scores.one_pass import GROUP


@dataclass(frozen=True)
class HeadBytes:
    """Bytes of the head in one process, the weight itself excluded.

    Attributes:
        passes: "one_pass", "keep_dz" or "two_pass".
        buffers: logits and their gradients, at most, in the forward; `slices` in the backward.
        picked: hidden states of the scored tokens, policy's; `reference` the reference's.
        d_hidden: their gradient in fp32.
        d_weight: fp32 accumulator of the weight's gradient in one pass; the kept gradients by the
            logits; 0 in two passes.
        copy: autocast's copy of an fp32 weight.
        grad: the weight's gradient in the dtype of the weight that the head reads.
        forward, held, backward: the most in the forward, what stays after it, the most in the
            backward.
    """

    passes: str
    buffers: float
    slices: float
    picked: float
    reference: float
    d_hidden: float
    d_weight: float
    copy: float
    grad: float
    forward: float
    held: float
    backward: float


def head_bytes(
    shape: ModelShape, setting: Setting, scored: float, pairs: float, by_token: bool = False
) -> HeadBytes:
    """The head's bytes for one batch.

    Args:
        shape: of the model.
        setting: of the run.
        scored: N, of one process.
        pairs: pairs of the batch: a trainable head takes one pair for one pass.
        by_token: scored tokens serve several sides (`Load.by_token`).
    """
    matrix, states = shape.vocab * shape.hidden, scored * shape.hidden
    read = _read_bytes(setting)
    trainable = setting.lora is None
    passes = passes_of(shape, setting, scored, pairs, by_token)
    one = passes != "two_pass"
    work = _work_bytes(setting)
    buffers = _forward_buffers(shape, setting, scored, work, passes, trainable)
    picked = states * read * (2 if _casts(setting) else 1)
    reference = states * read if setting.needs_kl else 0.0
    copy = matrix * read if _casts(setting) else 0.0
    grad = matrix * read if trainable else 0.0
    d_hidden = states * 4
    if passes == "keep_dz":
        d_weight = _dz_bytes(shape, setting, scored)
        slices = 0.0
        held = d_hidden + d_weight + picked + copy
        forward = reference + held + buffers
        # The weight's gradient, and the hidden states times the factors of their pairs.
        made = matrix * 4 if _casts(setting) else grad
        backward = held + made + states * work + (0.0 if read == 4 else states * read)
    elif one:
        d_weight = matrix * 4 if trainable else 0.0
        slices = 0.0
        held = d_hidden + d_weight
        forward = picked + reference + copy + held + buffers
        # With an fp32 weight dW is the gradient itself, else that is made beside it.
        made = grad if read != 4 and not _casts(setting) else 0.0
        backward = held + made + (0.0 if read == 4 else states * read)
    else:
        d_weight = 0.0
        slices = _backward_slices(shape, setting, scored, work)
        held = picked + reference + copy
        forward = held + buffers
        upcast = states * 4 * (2 if setting.needs_kl else 1) if work != read else 0.0
        cast = matrix * 4 if _casts(setting) and trainable else 0.0
        backward = held + upcast + d_hidden + grad + max(slices, states * read, cast)
    return HeadBytes(
        passes,
        *(buffers, slices, picked, reference, d_hidden, d_weight, copy, grad),
        *(forward, held, backward),
    )


def passes_of(
    shape: ModelShape, setting: Setting, scored: float, pairs: float, by_token: bool = False
) -> str:
    """The passes of a batch of so many pairs, as `prefkit.loss.passes` chooses it.

    "one_pass", "keep_dz" (by the bytes of `keep_dz.fits` in `prefkit_kernels`) or "two_pass".
    """
    trainable, possible = setting.lora is None, setting.one_pass
    if by_token or not possible:  # each token is a score of its own
        pairs, possible = scored, setting.one_pass_by_token
    if not possible or setting.passes == "two_pass":
        return "two_pass"
    if not trainable or setting.passes == "one_pass":
        return "one_pass" if not trainable or pairs <= 1 else "two_pass"
    if setting.passes == "keep_dz" or _keeps_dz(shape, setting, scored, pairs):
        return "keep_dz"
    return "one_pass" if pairs <= 1 else "two_pass"


def _keeps_dz(shape: ModelShape, setting: Setting, scored: float, pairs: float) -> bool:
    allowed = setting.memory_budget
    if not allowed:
        accumulates = pairs > 1 or (_read_bytes(setting) != 4 and not _casts(setting))
        accumulator = shape.vocab * shape.hidden * 4 if accumulates else 0
        allowed = max(token_budget(_device(setting), shape.vocab * 4, trained=True), accumulator)
    return _dz_bytes(shape, setting, scored) <= allowed


def _dz_bytes(shape: ModelShape, setting: Setting, scored: float) -> float:
    return scored * shape.vocab * _work_bytes(setting)


def _work_bytes(setting: Setting) -> int:
    """Of a number in the gradient products."""
    return 4 if setting.on_cpu else _read_bytes(setting)


def _device(setting: Setting) -> torch.device:
    return torch.device("cpu" if setting.on_cpu else "cuda")


def reading_bytes(shape: ModelShape, setting: Setting, scored: float) -> float:
    """The reference's log-probabilities: hidden states, logits, autocast's copy of the head."""
    if setting.needs_kl:
        return scored * shape.hidden * _read_bytes(setting)
    rows = _rows(setting, shape.vocab * 4, scored)
    states = scored * shape.hidden * _read_bytes(setting) * (2 if _casts(setting) else 1)
    copy = shape.vocab * shape.hidden * 2 if _casts(setting) else 0
    return rows * shape.vocab * 4 + states + copy


def _casts(setting: Setting) -> bool:
    """Whether autocast copies hidden states and weight to another dtype."""
    return setting.mixed is not None and setting.computed != setting.mixed


def _read_bytes(setting: Setting) -> int:
    return (setting.mixed or setting.computed).itemsize


def _rows(setting: Setting, row_bytes: float, scored: float, trained: bool = False) -> int:
    device = _device(setting)
    budget = setting.memory_budget or token_budget(device, round(row_bytes), trained)
    chunks = token_chunks(round(scored), round(row_bytes), round(budget), token_tile(device))
    return max((stop - start for start, stop in chunks), default=0)


def _forward_buffers(
    shape: ModelShape, setting: Setting, scored: float, work: int, passes: str, trainable: bool
) -> float:
    logits = 2 if setting.needs_kl else 1
    if passes == "keep_dz" and work == 4:
        logits -= 1  # the policy's are where dz is kept
    row = shape.vocab * 4 * logits
    if passes == "one_pass" and work != 4:
        # Gradients by the logits in the products' own dtype, beside the logits.
        row += shape.vocab * work * (GROUP if trainable else 1)
    trained = passes != "two_pass" and trainable
    return float(_rows(setting, row, scored, trained) * row) if row else 0.0


def _backward_slices(shape: ModelShape, setting: Setting, scored: float, work: int) -> float:
    column = round(scored) * (4 * (2 if setting.needs_kl else 1) + (work if work != 4 else 0))
    budget = setting.memory_budget or slice_budget(_device(setting))
    slices = vocab_slices(shape.vocab, column, budget)
    return float(column * max(stop - start for start, stop in slices))
