"""What to change: each change planned anew, with what it saves.

Where a run does not fit, changes that save bytes, in the order of what they cost: nothing first,
then time, then another result. In any case, rows of whole questions, where they read fewer tokens.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from prefkit.data.batch.bundles import row_tokens
from prefkit.data.batch.collators import Layout
from prefkit.plan.inputs.lengths import Lengths
from prefkit.plan.inputs.loads import Load
from prefkit.plan.inputs.meta_model import Lora
from prefkit.plan.inputs.setting import Setting

Change = tuple[str, str, Setting]  # the option and its value, what it costs, the setting then
_LORA = Lora(16, 32, 0.0, "all-linear")
_CLEARLY = 1.05  # times as many tokens: less is not worth another option


@dataclass(frozen=True)
class Advice:
    """A change of the options.

    Attributes:
        change: the option and its value.
        saves: bytes of one process's peak; less than 0 = it takes more.
        costs: what it costs, in words.
        fits: whether the run fits with this change alone.
        reads: tokens an epoch with and without it, where it is there to read fewer; else None.
    """

    change: str
    saves: float
    costs: str
    fits: bool
    reads: tuple[float, float] | None = None


def read_less(
    setting: Setting,
    lengths: Lengths,
    layout: Layout,
    loads: Callable[[Setting], tuple[Load, Load]],
    peak: Callable[[Setting], float],
    room: float,
) -> list[Advice]:
    """Rows of whole questions, where questions have several pairs that batches tear apart.

    Args:
        setting, lengths, layout: of the run and its data.
        loads: the heaviest and the mean batch of a setting.
        peak: bytes of a setting's peak, assumed slack included.
        room: bytes that there are.
    """
    if layout != "tree" or lengths.total is None:
        return []
    alone, together = (row_tokens(lengths.pairs, how) for how in ("shared", "tree"))
    if alone <= _CLEARLY * together:
        return []
    heaviest, mean = loads(setting)
    if setting.tokens_per_batch is None:
        budget = round(heaviest.tokens)  # as large a batch as there may be now
        change, other = f"tokens_per_batch: {budget}", replace(setting, tokens_per_batch=budget)
    elif setting.group_by == "none":
        change, other = "group_by: question", replace(setting, group_by="question")
    else:
        return []
    _, then = loads(other)
    now, epoch = ((load.tokens * lengths.total / load.pairs) for load in (mean, then))
    if now <= _CLEARLY * epoch:
        return []
    bytes_then = peak(other)
    costs = f"{then.pairs:.0f} pairs a batch instead of {mean.pairs:.0f}, those of a question "
    costs += "together"
    return [Advice(change, peak(setting) - bytes_then, costs, bytes_then <= room, (epoch, now))]


def advise(
    setting: Setting,
    lengths: Lengths,
    layout: Layout,
    peak: Callable[[Setting], float],
    room: float,
    heads: int,
) -> list[Advice]:
    """Changes that save memory, in the order to try them.

    Args:
        setting: of the run that does not fit.
        lengths, layout: of its data and rows.
        peak: bytes of a setting's peak, assumed slack included.
        room: bytes that there are.
        heads: attention heads that processes which share a row can share; 1 = no row is shared.
    """
    now = peak(setting)
    found = []
    for change, costs, other in _changes(setting, lengths, layout, heads):
        saves = now - peak(other)
        if saves > 0.005 * now:
            found.append(Advice(change, saves, costs, now - saves <= room))
    return found


def _changes(setting: Setting, lengths: Lengths, layout: Layout, heads: int) -> Iterator[Change]:
    s = setting
    if s.layout in ("separate", "shared"):
        yield "layout: tree", "nothing", replace(s, layout="tree")
    takes_two = s.one_pass_by_token and s.lora is None and s.passes != "two_pass"
    if takes_two and s.mixed is not None:
        text = "recomputes the head's logits"
        yield "head_passes: two_pass", text, replace(s, passes="two_pass")
    if s.runs_reference and not s.needs_kl and not s.sharded:
        text = "a pass over the data before training"
        yield "precompute_ref_log_probs: true", text, replace(s, precomputed=True)
    if s.runs_reference and s.needs_kl and not s.sharded:
        text = "a pass over the data before training, and disk"
        yield "precompute_ref_hidden: true", text, replace(s, cached_hidden=True)
    if not s.checkpointing:
        text = "a second forward of the body"
        other = replace(s, checkpointing=True)
        yield ("activation checkpointing " + _where(s, "")), text, other
    if not s.offload:
        text = "copies to the host and back"
        other = replace(s, checkpointing=True, offload=True)
        name = "checkpointing with offload " if not s.checkpointing else "activation offload "
        yield name + _where(s, "_offload"), text, other
    if s.gpus > 1 and not s.sharded:
        # FSDP2 takes no precomputed reference.
        other = replace(s, sharding="fsdp2", precomputed=False, cached_hidden=False)
        yield "fsdp: true (FSDP2: a share of the model in each process)", "communication", other
    yield from _smaller_batches(s, lengths, layout)
    if s.sharded:
        yield from _more_sharding(s, heads)
    if s.lora is None:
        text = "trains an adapter instead of the model"
        yield "adapter: lora", text, replace(s, lora=_LORA, own_reference=False, passes="auto")


def _smaller_batches(s: Setting, lengths: Lengths, layout: Layout) -> Iterator[Change]:
    if s.tokens_per_batch is not None:
        largest = max(row_tokens([pair], layout) for pair in lengths.pairs)
        largest = -(-largest // s.multiple) * s.multiple
        if (half := max(largest, s.tokens_per_batch // 2)) < s.tokens_per_batch:
            other = replace(s, tokens_per_batch=half)
            yield f"tokens_per_batch: {half}", "more, smaller batches", other
    elif s.pairs > 1:
        text = f"gradient_accumulation_steps: {s.accumulation * s.pairs}, for the same step"
        other = replace(s, pairs=1, accumulation=s.accumulation * s.pairs)
        yield "per_device_train_batch_size: 1", text, other


def _more_sharding(s: Setting, heads: int) -> Iterator[Change]:
    other = replace(s, gpus=2 * s.gpus)
    yield f"{2 * s.gpus} GPUs instead of {s.gpus}", "twice the GPUs", other
    parallel = 2 * s.sequence_parallel
    if s.gpus % parallel == 0 and heads % parallel == 0:
        other = replace(s, sequence_parallel=parallel)
        yield f"sequence_parallel_size: {parallel}", "communication in attention", other
    if not s.offload_params:
        other = replace(s, offload_params=True)
        yield "fsdp_offload_params: true", "optimiser steps on the host", other


def _where(setting: Setting, ending: str) -> str:
    if setting.sharding == "fsdp2":
        return f"(fsdp_activation_checkpointing{ending}: true)"
    option = 'activation_checkpointing_kwargs: {"offload": true}' if ending else ""
    return f"({option or 'gradient_checkpointing: true'})"
