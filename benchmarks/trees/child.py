"""One way of training on some rows, a step each time it is told to: see `benchmarks.whole_step`."""

import argparse
import copy
import json
import sys
import tempfile
import time
from typing import Any

from benchmarks.memory import give_back, status
from benchmarks.trees.rows import Shape, rows_of
from benchmarks.whole_step.child import tell
from benchmarks.whole_step.shapes import BODIES, word_tokenizer

WAYS = ("tree", "shared", "separate", "trl")


def train(
    way: str,
    shape: Shape,
    model: str | None,
    steps: int,
    body: str = "smollm2",
    device: str = "cpu",
) -> None:
    """Trains up to `steps` steps; prints the seconds, pairs, tokens read and peak memory of each.

    Every way reads about `shape.budget` tokens a step: as many pairs as fit.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, TrainerCallback

    if way == "trl":  # what is imported counts as idle
        from trl import DPOConfig as Config
        from trl import DPOTrainer as Trainer
    else:
        from prefkit import PreferenceConfig as Config
        from prefkit import PreferenceTrainer as Trainer
    tokenizer = AutoTokenizer.from_pretrained(model) if model else word_tokenizer()
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    data = rows_of(shape, tokenizer, steps)
    idle = status("VmRSS")
    if model:
        policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    else:
        with torch.device(device):
            policy = AutoModelForCausalLM.from_config(LlamaConfig(**BODIES[body]))
    read = [0]

    def count(module: Any, given: Any, out: Any) -> None:
        if module.training:  # the reference may be a copy, hook and all
            read[0] += given[0].numel()

    policy.get_input_embeddings().register_forward_hook(count)

    def now() -> float:
        if device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter()

    class Turns(TrainerCallback):
        pairs = 0

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            sys.stdin.readline()
            self.pairs = read[0] = 0
            self.start, self.work = now(), time.process_time()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            seconds, work = now() - self.start, time.process_time() - self.work
            peak = torch.cuda.max_memory_allocated() if device != "cpu" else status("VmHWM") - idle
            told = {"seconds": seconds, "cpu": work, "memory": peak}
            give_back()  # to those that wait for their turn
            tell({**told, "read": read[0], "pairs": self.pairs})

    turns = Turns()
    with tempfile.TemporaryDirectory() as folder:
        own: dict[str, Any] = {"layout": way, "tokens_per_batch": shape.budget, "level": "step"}
        given: Any = data
        if way == "trl":
            from datasets import Dataset

            flat = [{**r, "prompt": r["prompt"] + r["prefix"]} for r in data]
            given = Dataset.from_list(
                [{k: r[k] for k in ("prompt", "chosen", "rejected")} for r in flat]
            )
            # Pair by pair: the logits of several at once leave no room for the other ways.
            own = {"max_length": None, "per_device_train_batch_size": 1}
            own["gradient_accumulation_steps"] = _pairs(shape, tokenizer, flat)
        args = Config(
            output_dir=folder, max_steps=steps, learning_rate=1e-6, beta=0.1, report_to="none",
            save_strategy="no", logging_steps=1000, disable_tqdm=True, use_cpu=device == "cpu",
            bf16=device != "cpu", gradient_checkpointing=False, **own,
        )  # fmt: skip
        trainer = Trainer(
            policy,
            ref_model=None if model else copy.deepcopy(policy),
            args=args,
            train_dataset=given,
            processing_class=tokenizer,
            callbacks=[turns],
        )
        step = trainer.training_step

        def counting(policy: Any, inputs: Any, *args: Any) -> Any:
            indexed = inputs.get("pair_index")
            turns.pairs += len(inputs["input_ids"]) // 2 if indexed is None else len(indexed)
            return step(policy, inputs, *args)

        trainer.training_step = counting
        tell({"ready": True, "tokens": 0})
        trainer.train()


def _pairs(shape: Shape, tokenizer: Any, rows: list[dict[str, str]]) -> int:
    """Pairs of a padded batch of about the budget's tokens."""
    some = rows[:: max(1, len(rows) // 20)]
    texts = [row["prompt"] + row[side] for row in some for side in ("chosen", "rejected")]
    lengths = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    return max(1, round(shape.budget * len(lengths) / sum(lengths) / 2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--child", choices=WAYS)
    parser.add_argument("--child-shape")
    parser.add_argument("--model")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--body", default="smollm2")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    shape = Shape(**json.loads(given.child_shape))
    train(given.child, shape, given.model or None, given.rounds, given.body, given.device)
