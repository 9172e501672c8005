"""Does a windowed model's long row cost more than a full-attention one's? Memory and time, a step.

    python -m benchmarks.windowed_rows [--tokens 32768] [--write FILE]

One shared row: a prefix of half of it and two responses. Forward and backward of a whole model, in
fp32 with activation checkpointing, DPO on every response token; the kinds of attention take turns,
each in a process of its own. The models are equal but for how far back their layers see; one with
alternating layers has both. Memory is the peak that the step adds to the process's resident size.
Beside it stands what one (tokens × tokens) mask of bool would take, which no kind forms.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.machine import write_page
from benchmarks.memory import ALLOCATOR, resident_peak
from prefkit import DPO, fused_preference_loss
from prefkit.data import PairCollator
from prefkit.data.pair import TokenizedPair, TokenizedSide
from prefkit.model.attention.install import install_attention, reading
from prefkit.model.attention.limits import why_not
from prefkit.model.head.fused import install

SHAPE: dict[str, Any] = {
    "vocab_size": 4096,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 65_536,
}
_EXPERTS: dict[str, Any] = {"num_local_experts": 2, "num_experts_per_tok": 1}
# Type and changes of its config, by what the table calls it. Full attention comes first of each.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "full attention": ("mistral", {"sliding_window": None}),
    "window of 4096": ("mistral", {"sliding_window": 4096}),
    "window of 1024": ("mistral", {"sliding_window": 1024}),
    "window of 1024, every other layer": (
        "qwen2",
        {
            "sliding_window": 1024,
            "use_sliding_window": True,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "full attention and sinks, experts": (
        "gpt_oss",
        {"layer_types": ["full_attention", "full_attention"], **_EXPERTS},
    ),
    "window of 128 and sinks, experts": (
        "gpt_oss",
        {
            "sliding_window": 128,
            "layer_types": ["sliding_attention", "sliding_attention"],
            **_EXPERTS,
        },
    ),
}


def batch_of(tokens: int) -> Any:
    """One pair as a shared row of so many tokens."""
    draw = np.random.default_rng(0)
    side = tokens // 4
    front = draw.integers(3, 4000, tokens - 2 * side)

    def one(first: int) -> TokenizedSide:
        ids = np.concatenate([front, [first], draw.integers(3, 4000, side - 1)]).astype(np.int32)
        scored = np.arange(len(ids)) >= len(front)
        return TokenizedSide(ids=ids, scored=scored, weights=scored.astype(np.float32), eos=False)

    pair = TokenizedPair(
        chosen=one(4001), rejected=one(4002), shared=len(front), source="benchmark", row=0
    )
    return PairCollator(0, layout="shared")([pair])


def measure(kind: str, tokens: int) -> dict[str, float]:
    """Bytes that a step adds at its peak, and its seconds."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model_type, changes = KINDS[kind]
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **SHAPE | changes))
    return measure_step(model, tokens, batch_of(256), batch_of(tokens))


def measure_step(model: Any, longest: int, small: Any, batch: Any) -> dict[str, float]:
    """Bytes that a step of DPO adds at its peak, and its seconds, with activation checkpointing.

    Args:
        model: of transformers, as it is made.
        longest: tokens of the longest sequence.
        small: a batch for a step before, after which gradients and libraries are there.
        batch: what is measured.
    """
    model.gradient_checkpointing_enable({"use_reentrant": False})
    install_attention(model)
    head = install(model)
    if (reason := why_not(model, longest)) is not None:
        raise RuntimeError(reason)
    model.train()

    def step(batch: Any) -> None:
        def request(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
            flat = hidden.flatten(0, 1)[batch["positions"]]
            out = fused_preference_loss(
                flat, weight, batch["targets"], batch["segments"], DPO(), bias=bias,
                ref_logp=torch.full((len(flat),), -8.0), num_scored=batch["num_scored"],
                token_index=batch.get("token_index"), one_sided=batch.get("one_sided", False),
                logit_scale=head.transform.logit_scale,
            )  # fmt: skip
            return out.loss, {}

        with reading(batch) as inputs:
            model(**inputs, prefkit_request=request).value.backward()

    step(small)
    start = time.monotonic()
    memory = resident_peak(lambda: step(batch))
    return {"memory": memory, "seconds": time.monotonic() - start}


def table(found: dict[str, dict[str, float]], tokens: int) -> str:
    """Markdown: one line a kind."""
    lines = [
        f"One shared row of {tokens:,} tokens. A mask of bool would be {tokens**2 / 1e6:,.0f} MB.",
        "",
        "| layers see | MB added | × full attention | seconds | × full attention |",
        "| --- | --- | --- | --- | --- |",
    ]
    full = {"memory": 1.0, "seconds": 1.0}
    for kind, one in found.items():
        full = one if kind.startswith("full") else full
        times = one["memory"] / full["memory"], one["seconds"] / full["seconds"]
        lines.append(
            f"| {kind} | {one['memory'] / 1e6:,.0f} | {times[0]:.2f} | {one['seconds']:.1f} | "
            f"{times[1]:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--tokens", type=int, default=32_768, help="of the row")
    parser.add_argument("--write", type=Path, help="also write the table to this file")
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.kind is not None:
        print(json.dumps(measure(options.kind, options.tokens)))
        return
    found = {}
    for kind in KINDS:
        command = [sys.executable, "-m", "benchmarks.windowed_rows", "--kind", kind]
        command += ["--tokens", str(options.tokens)]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, **ALLOCATOR}, check=True
        )
        found[kind] = json.loads(done.stdout.splitlines()[-1])
        print(f"{kind}: {found[kind]}", file=sys.stderr)
    text = table(found, options.tokens)
    print(text)
    if options.write is not None:
        command = f"python -m benchmarks.windowed_rows --tokens {options.tokens}"
        write_page(options.write, command, text)


if __name__ == "__main__":
    main()
