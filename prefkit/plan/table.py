"""A plan as a table, and as one JSON object."""

import math
from dataclasses import asdict
from typing import Any

from prefkit.data.batch.collators import Layout
from prefkit.plan.costs.exact import Exact
from prefkit.plan.inputs.setting import Setting
from prefkit.plan.planning import Plan

_WIDTH = 46
_ACCUMULATED = {
    "one_pass": "fp32 accumulator of its gradient",
    "keep_dz": "kept gradients by the logits",
    "two_pass": "",  # nothing is held
}
_LEAST = 1e-3  # share of the sum below which a component is left out


def readable(size: float) -> str:
    """Bytes in GB (10⁹), or below that in MB or kB."""
    for unit, one, digits in (("GB", 1e9, 2), ("MB", 1e6, 1)):
        if size >= one:
            return f"{size / one:,.{digits}f} {unit}"
    return f"{size / 1e3:,.1f} kB"


def _count(number: float) -> str:
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:,.2f} {unit}"
    return f"{number:,.0f}"


def _row(name: str, value: str, more: str = "") -> str:
    return f"  {name:{_WIDTH}}{value:>14}" + (f"   {more}" if more else "")


def plan_table(plan: Plan, exact: Exact | None = None) -> str:
    """The plan in lines for a person."""
    lines = [*_head(plan), "", *_memory(plan), "", *_work(plan)]
    if exact is not None:
        lines += ["", *_exact(plan, exact)]
    lines += ["", _verdict(plan, exact)]
    lines += _advice(plan)
    lines += [f"Note: {note}" for note in plan.notes]
    return "\n".join([*lines, "", "Run it with:", *(f"  {x}" for x in plan.command.split("\n"))])


def _head(plan: Plan) -> list[str]:
    shape, setting = plan.shape, plan.setting
    trained = shape.adapter if setting.lora else shape.total
    precision = str(setting.weights).removeprefix("torch.")
    if setting.mixed is not None:
        precision += f", mixed {str(setting.mixed).removeprefix('torch.')}"
    share = {"none": "", "ddp": ", a replica each", "fsdp2": ", FSDP2", "zero3": ", ZeRO-3"}
    device = "process" if setting.on_cpu or plan.supposed else "GPU"
    device += ("es" if setting.on_cpu or plan.supposed else "s") if setting.gpus > 1 else ""
    device += " on a CPU" if setting.on_cpu else ""
    spread = f"{setting.gpus} {device}{share[setting.sharding]}"
    if setting.sequence_parallel > 1:
        spread += f", {setting.sequence_parallel} share a row"
    return [
        f"Model      {shape.name}: {_count(shape.total)} parameters, {_count(trained)} train; "
        f"{shape.layers} layers, width {shape.hidden}, vocabulary {shape.vocab:,}",
        f"Method     {setting.method}; {precision}; {spread}",
        f"Data       {plan.lengths.source}; layout {plan.layout}{_rows(setting, plan.layout)}",
    ]


def _rows(setting: Setting, layout: Layout) -> str:
    """What is in a row, in words, where an option says it."""
    if setting.tokens_per_batch is None:
        return ""
    kind = "pairs"
    if layout == "tree" and setting.group_by == "question":
        kind = "whole questions"
    return f", {kind} packed into rows of {setting.tokens_per_batch:,} tokens"


def _memory(plan: Plan) -> list[str]:
    memory = plan.memory
    lines = [f"Memory of one process at its peak ({memory.peak.name})"]
    least = _LEAST * memory.peak.total
    parts = sorted(memory.peak.parts.items(), key=lambda part: -part[1])
    lines += [_row(name, readable(size)) for name, size in parts if size >= least]
    lines.append(_row("sum", readable(memory.peak.total)))
    lines.append(_row("allocator's slack (assumed, 5 %)", readable(memory.slack)))
    if memory.on_host:
        lines.append(
            _row("on the host, a process: offloaded activations", readable(memory.on_host))
        )
    lines.append("Other moments of a step")
    lines += [
        _row(moment.name, readable(moment.total))
        for moment in memory.moments
        if moment is not memory.peak
    ]
    head = memory.head
    lines.append(f"The head ({head.passes}), of which not all at once")
    rows = {
        "logits and their gradients (budget)": head.buffers,
        "slices of the backward (budget)": head.slices,
        _ACCUMULATED[head.passes]: head.d_weight,
        "fp32 gradient of the hidden states": head.d_hidden,
        "hidden states of the scored tokens": head.picked,
        "the reference's hidden states": head.reference,
        "its gradient": head.grad,
        "autocast's copy": head.copy,
    }
    lines += [_row(name, readable(size)) for name, size in rows.items() if size]
    return lines


def _work(plan: Plan) -> list[str]:
    work, load = plan.work, plan.heaviest
    lines = [f"An optimiser step (all processes, batches of mean size, {_count(work.pairs)} pairs)"]
    lines.append(
        _row("tokens read", _count(work.tokens), f"{_count(load.tokens)} in the heaviest row")
    )
    lines.append(_row("tokens scored", _count(work.scored)))
    if plan.layout in ("tree", "shared"):
        read = f"{_count(work.full)} in full: {work.full / work.tokens:.2f} times as many"
        lines.append(_row("tokens saved", f"{1 - work.tokens / work.full:.0%}", read))
    for name in ("body", "attention", "head", "reference", "recomputation"):
        share = getattr(work, name)
        if share:
            lines.append(_row(f"operations: {name}", f"{share:.3g}", f"{share / work.total:.0%}"))
    lines.append(_row("operations", f"{work.total:.3g}"))
    if plan.steps is not None:
        lines.append(_row("optimiser steps an epoch", _count(math.ceil(round(plan.steps, 6)))))
    return lines


def _exact(plan: Plan, exact: Exact) -> list[str]:
    lines = [
        "torch's FSDPMemTracker (its own names; the head's buffers are this project's arithmetic)"
    ]
    least = _LEAST * exact.peak
    lines += [_row(name, readable(size)) for name, size in exact.parts.items() if size >= least]
    off = plan.memory.peak.total / exact.peak - 1
    lines.append(_row("sum", readable(exact.peak), f"the plan above is {off:+.1%} off"))
    return lines


def _verdict(plan: Plan, exact: Exact | None) -> str:
    need = plan.need
    if exact is not None:
        need = exact.peak * (1 + plan.memory.slack / plan.memory.peak.total)
    what = "this machine" if plan.setting.on_cpu else "one GPU"
    what += " (supposed)" if plan.supposed else ""
    margin = plan.room - need
    if margin >= 0:
        return (
            f"It fits: {readable(need)} of {readable(plan.room)} of {what}, "
            f"{readable(margin)} free."
        )
    return (
        f"It does NOT fit: {readable(need)} are needed, {what} has {readable(plan.room)}, "
        f"{readable(-margin)} too little."
    )


def _advice(plan: Plan) -> list[str]:
    if not plan.advice:
        return []
    what = "What reads less" if plan.fits else "What to change, cheapest first (each alone)"
    lines = [f"{what}:"]
    for advice in plan.advice:
        enough = ", which is enough" if advice.fits and not plan.fits else ""
        does = "saves" if advice.saves >= 0 else "takes"
        saves = f"{does} {readable(abs(advice.saves))}{enough}"
        if advice.reads:
            epoch, now = advice.reads
            less = f"reads {_count(epoch)} tokens an epoch instead of {_count(now)}"
            saves = f"{less} ({now / epoch:.2f} times fewer); {saves}"
        lines += [f"  {advice.change}", f"      {saves}; costs {advice.costs}"]
    return lines


def plan_json(plan: Plan, exact: Exact | None = None) -> dict[str, Any]:
    """The plan as plain numbers; bytes are of one process, operations of all."""
    setting = {key: _plain(value) for key, value in vars(plan.setting).items()}
    found: dict[str, Any] = {
        "model": asdict(plan.shape),
        "setting": setting,
        "layout": plan.layout,
        "sharing": plan.lengths.sharing,
        "heaviest_batch": plan.heaviest._asdict(),
        "mean_batch": plan.mean._asdict(),
        "moments": [
            {"name": m.name, "bytes": m.total, "parts": dict(m.parts)} for m in plan.memory.moments
        ],
        "peak": {"name": plan.memory.peak.name, "bytes": plan.memory.peak.total},
        "assumed_slack_bytes": plan.memory.slack,
        "head": asdict(plan.memory.head),
        "host_bytes": plan.memory.on_host,
        "step": {**asdict(plan.work), "operations": plan.work.total},
        "room_bytes": plan.room,
        "fits": plan.fits,
        "advice": [asdict(advice) for advice in plan.advice],
        "notes": plan.notes,
        "command": plan.command,
    }
    if exact is not None:
        found["exact"] = asdict(exact)
    return found


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return asdict(value) if hasattr(value, "__dataclass_fields__") else str(value)
