"""`prefkit plan` against measured memory: six CPU runs of two optimiser steps, one process each.

    python -m benchmarks.plan_vs_measured [NAME …]

Each run is a real one (`PreferenceTrainer`, transformers' loop, AdamW) of a random model on random
pairs. Measured is the highest resident memory (VmHWM) above that of the process when everything is
imported and no model is there yet. glibc is told to give every freed block of 64 KiB or more back
at once (MALLOC_MMAP_THRESHOLD_, MALLOC_TRIM_THRESHOLD_), else its free lists would be measured.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.memory import ALLOCATOR, status

_SHAPE = {"hidden_size": 512, "intermediate_size": 1376, "num_attention_heads": 8, "head_dim": 64}
_SHAPE |= {"num_key_value_heads": 2, "max_position_embeddings": 8192, "bos_token_id": None}
_SHAPE |= {"eos_token_id": 0, "pad_token_id": 1, "tie_word_embeddings": False}
# One arena, and room for as many mapped blocks as a training step holds tensors.
_MALLOC = {**ALLOCATOR, "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_MAX_": "1000000"}


@dataclass(frozen=True)
class Case:
    """A run.

    Attributes:
        name: of the case.
        model: fields of the model's config.
        lengths: tokens of prefix, chosen, rejected of every pair.
        options: of `prefkit train`.
    """

    name: str
    model: dict[str, Any]
    lengths: tuple[int, int, int]
    options: dict[str, Any]


def _llama(**changes: Any) -> dict[str, Any]:
    return {"model_type": "llama", **_SHAPE, **changes}


CASES = {
    case.name: case
    for case in (
        Case(
            "dpo",
            _llama(num_hidden_layers=4, vocab_size=32000),
            (1024, 512, 512),
            {"method": "dpo", "per_device_train_batch_size": 1},
        ),
        Case(
            "dpo-checkpointed",
            _llama(num_hidden_layers=8, vocab_size=64000, hidden_size=256),
            (3000, 500, 500),
            {"method": "dpo", "per_device_train_batch_size": 1, "gradient_checkpointing": True},
        ),
        Case(
            "tdpo2",
            _llama(num_hidden_layers=2, vocab_size=128256, hidden_size=256),
            (900, 60, 60),
            {"method": "tdpo2", "per_device_train_batch_size": 1},
        ),
        Case(
            "lora",
            _llama(num_hidden_layers=6, vocab_size=32000),
            (700, 300, 300),
            {
                "method": "step-dpo",
                "per_device_train_batch_size": 2,
                "adapter": "lora",
                "dtype": "bfloat16",
            },
        ),
        Case(
            "precomputed-separate",
            {**_llama(num_hidden_layers=4, vocab_size=50000), "model_type": "qwen2"},
            (300, 300, 300),
            {
                "method": "dpo",
                "per_device_train_batch_size": 2,
                "precompute_ref_log_probs": True,
                "layout": "separate",
                "gradient_accumulation_steps": 2,
            },
        ),
        Case(
            "simpo-bf16",
            {**_llama(num_hidden_layers=4, vocab_size=32000), "model_type": "qwen3"},
            (600, 700, 700),
            {"method": "simpo", "per_device_train_batch_size": 1, "bf16": True},
        ),
    )
}


def _arguments(case: Case, folder: str) -> list[str]:
    """The command line of the case, without its data."""
    options = {
        "model": f"{folder}/config.json",
        "train_data": "none.jsonl",
        "output_dir": f"{folder}/out",
        "max_steps": 2,  # the second has the optimiser's states
        "save_strategy": "no",
        "logging_steps": 1,
        "use_cpu": True,
        "optim": "adamw_torch_fused",
        **case.options,
    }
    return [word for key, value in options.items() for word in (f"--{key}", str(value).lower())]


def predict(case: Case) -> Any:
    """The plan of a case."""
    from prefkit.cli.train import load_options
    from prefkit.plan import Planner, given_lengths, load_config, make_plan, read_setting

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "config.json")
        file.write_text(json.dumps(case.model), encoding="utf-8")
        config = load_config(str(file))
        setting = read_setting(load_options(_arguments(case, folder)))
    lengths = given_lengths(",".join(map(str, case.lengths)))
    planner = Planner(case.name, config, lengths)
    return make_plan(planner, setting, room=float(os.sysconf("SC_PAGE_SIZE")))


def measure(case: Case, timeout: float = 1800.0) -> int:
    """Bytes that the run takes above its idle process.

    Args:
        timeout: seconds, for a run that hangs; a step in bf16 takes 100 s on a CPU without
            instructions for it.
    Raises:
        RuntimeError: the run failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, **_MALLOC, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.plan_vs_measured", "--child", folder],
            input=json.dumps(asdict(case)),
            capture_output=True,
            text=True,
            timeout=timeout,
            env=environment,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f"{case.name} failed:\n{done.stderr[-3000:]}")
    return int(json.loads(done.stdout.splitlines()[-1])["bytes"])


def _child(case: Case, folder: str) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from prefkit.cli.train import load_options
    from prefkit.data.dataset import PairDataset
    from prefkit.train.launch import make_adapter
    from prefkit.train.trainer import PreferenceTrainer

    script, config, _ = load_options(_arguments(case, folder))
    adapter, pairs = make_adapter(script), PairDataset(_pairs(case, 8))
    idle = status("VmRSS")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(**case.model), dtype=getattr(torch, script.dtype)
    )
    trainer = PreferenceTrainer(
        model,
        args=config,
        train_dataset=pairs,
        processing_class=_tokenizer(),
        peft_config=adapter,
    )
    del model
    trainer.train()
    print(json.dumps({"bytes": status("VmHWM") - idle, "idle": idle}))


def _pairs(case: Case, count: int) -> list[Any]:
    import numpy as np

    from prefkit.data.pair import TokenizedPair, TokenizedSide

    generator = np.random.default_rng(0)
    prefix, *tails = case.lengths
    pairs = []
    for row in range(count):
        start = generator.integers(2, 250, prefix)
        sides = []
        for place, tail in enumerate(tails):
            rest = generator.integers(2, 250, tail)
            rest[0] = 2 + place  # the prefix ends here
            scored = np.arange(prefix + tail) >= prefix
            ids = np.concatenate([start, rest]).astype(np.int32)
            weights = scored.astype(np.float32)
            sides.append(TokenizedSide(ids=ids, scored=scored, weights=weights, eos=False))
        pairs.append(
            TokenizedPair(
                chosen=sides[0], rejected=sides[1], shared=prefix, source="random", row=row
            )
        )
    return pairs


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {"<eos>": 0, "<pad>": 1, **{f"w{i}": i for i in range(2, 256)}}
    inner = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", pad_token="<pad>")


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"some of: {', '.join(CASES)}")
    parser.add_argument("--child", metavar="FOLDER", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        _child(Case(**json.load(sys.stdin)), arguments.child)
        return
    print(f"{'run':24}{'plan, MB':>12}{'measured, MB':>14}{'off':>8}   peak of the plan")
    for name in arguments.names or CASES:
        plan, measured = predict(CASES[name]), measure(CASES[name])
        peak = plan.memory.peak
        off = peak.total / measured - 1
        print(f"{name:24}{peak.total / 1e6:12.0f}{measured / 1e6:14.0f}{off:+8.1%}   {peak.name}")


if __name__ == "__main__":
    main()
