"""Floating-point operations of an optimiser step, all processes together.

A product of (m, k) by (k, n) is 2·m·k·n. The body is 2 operations a parameter and token forward, 2
for the gradient of its input, 2 for that of its weights (none for frozen ones); attention is
4·heads·head_dim a pair of query and key forward, twice that backward. Recomputation repeats the
forward. The head is counted in products of 2·N·D·V, as docs/kernels.md lists them. What is not a
matrix product is left out.
"""

from dataclasses import dataclass

from prefkit.plan.costs.head import passes_of
from prefkit.plan.inputs.loads import Load
from prefkit.plan.inputs.setting import Setting
from prefkit.plan.inputs.shape import ModelShape


@dataclass(frozen=True)
class Work:
    """Operations and tokens of an optimiser step.

    Attributes:
        tokens, scored, pairs: read by the policy, in the loss, and pairs, of all processes.
        full: tokens of both sequences of all pairs, each read by itself.
        body, attention, head, reference, recomputation: operations.
    """

    tokens: float
    scored: float
    pairs: float
    full: float
    body: float
    attention: float
    head: float
    reference: float
    recomputation: float

    @property
    def total(self) -> float:
        """All operations."""
        return self.body + self.attention + self.head + self.reference + self.recomputation


def work_of(shape: ModelShape, setting: Setting, load: Load) -> Work:
    """The work of a step of batches like `load`.

    Args:
        load: the mean batch of a row.
    """
    # Processes that share rows train on their members' batches in turn: none is lost.
    batches = setting.accumulation * setting.gpus
    active = shape.layers * shape.layer_active
    adapter = shape.layers * shape.adapter_layer
    forward = 2 * (active + adapter) * load.tokens
    attending = 4 * shape.layers * shape.heads * shape.head_dim * load.attention
    frozen = setting.lora is not None
    backward = 4 * active * load.tokens if not frozen else (2 * active + 4 * adapter) * load.tokens
    product = 2 * load.scored * shape.hidden * shape.vocab
    reference = 0.0
    if setting.runs_reference:
        reference = (2 * active * load.tokens + attending + product) * batches
    elif setting.cached_hidden:
        reference = product * batches
    passes = passes_of(shape, setting, load.scored, load.pairs, load.by_token)
    products = _head_products(setting, passes) * product
    return Work(
        tokens=load.tokens * batches,
        scored=load.scored * batches,
        pairs=load.pairs * batches,
        full=load.full * batches,
        body=(forward + backward) * batches,
        attention=3 * attending * batches,
        head=products * batches,
        reference=reference,
        recomputation=(forward + attending) * batches if setting.checkpointing else 0.0,
    )


def _head_products(setting: Setting, passes: str) -> int:
    """Products of the policy's head and, for a KL's gradient, the reference's second."""
    if passes != "two_pass":
        return 3 if setting.lora is None else 2
    return 5 if setting.needs_kl else 4
