"""What the fused head holds, by the arithmetic of `prefkit_kernels` (docs/kernels.md, "Held").

N scored tokens, hidden width D, vocabulary V. The logits' buffers are bounded by the budget; what
else there is grows with N·D or V·D, and depends on the schedule.
"""

from dataclasses import dataclass

from prefkit.plan.model import ModelShape
from prefkit.plan.setting import Setting
from prefkit_kernels.chunking import MIB, token_chunks, vocab_slices

_GPU_BUDGET, _CPU_ROWS, _CPU_MOST, _CPU_SLICES = 1024 * MIB, 256, 512 * MIB, 64 * MIB
_GROUP = 3  # chunks whose low-precision gradients are multiplied at once: one_pass._GROUP


@dataclass(frozen=True)
class HeadBytes:
    """Bytes of the head in one process, the weight itself excluded.

    Attributes:
        schedule: "one_pass" or "two_pass".
        buffers: logits and their gradients, at most, in the forward; `slices` in the backward.
        picked: hidden states of the scored tokens, policy's; `reference` the reference's.
        d_hidden: their gradient in fp32.
        d_weight: fp32 accumulator of the weight's gradient in one pass; 0 in two.
        copy: autocast's copy of an fp32 weight.
        grad: the weight's gradient in the dtype of the weight that the head reads.
        forward, held, backward: the most in the forward, what stays after it, the most in the
            backward.
    """

    schedule: str
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


def head_bytes(shape: ModelShape, setting: Setting, scored: float, pairs: float) -> HeadBytes:
    """The head's bytes for one batch.

    Args:
        shape: of the model.
        setting: of the run.
        scored: N, of one process.
        pairs: pairs of the batch: a trainable head takes one pair for one pass.
    """
    matrix, states = shape.vocab * shape.hidden, scored * shape.hidden
    read = _read_bytes(setting)
    trainable = setting.lora is None
    one = takes_one_pass(setting, pairs)
    work = 4 if setting.on_cpu else read  # dtype of the gradient products
    buffers = _forward_buffers(shape, setting, scored, work, one, trainable)
    picked = states * read * (2 if _casts(setting) else 1)
    reference = states * read if setting.needs_kl else 0.0
    copy = matrix * read if _casts(setting) else 0.0
    grad = matrix * read if trainable else 0.0
    d_hidden = states * 4
    if one:
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
        "one_pass" if one else "two_pass",
        *(buffers, slices, picked, reference, d_hidden, d_weight, copy, grad),
        *(forward, held, backward),
    )


def takes_one_pass(setting: Setting, pairs: float) -> bool:
    """Whether a batch of so many pairs takes one pass, as `prefkit.schedule` decides it."""
    possible = setting.one_pass and (setting.lora is not None or pairs <= 1)
    return possible and setting.schedule != "two_pass"


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


def _budget(setting: Setting, row_bytes: float) -> float:
    if setting.memory_budget is not None:
        return setting.memory_budget
    return min(_CPU_ROWS * row_bytes, _CPU_MOST) if setting.on_cpu else _GPU_BUDGET


def _rows(setting: Setting, row_bytes: float, scored: float) -> int:
    chunks = token_chunks(round(scored), round(row_bytes), round(_budget(setting, row_bytes)))
    return max((stop - start for start, stop in chunks), default=0)


def _forward_buffers(
    shape: ModelShape, setting: Setting, scored: float, work: int, one: bool, trainable: bool
) -> float:
    logits = 2 if setting.needs_kl else 1
    row = shape.vocab * 4 * logits
    if one and work != 4:  # gradients by the logits in the products' own dtype, beside the logits
        row += shape.vocab * work * (_GROUP if trainable else 1)
    return float(_rows(setting, row, scored) * row)


def _backward_slices(shape: ModelShape, setting: Setting, scored: float, work: int) -> float:
    column = round(scored) * (4 * (2 if setting.needs_kl else 1) + (work if work != 4 else 0))
    budget = setting.memory_budget or (_CPU_SLICES if setting.on_cpu else _GPU_BUDGET)
    slices = vocab_slices(shape.vocab, column, budget)
    return float(column * max(stop - start for start, stop in slices))
