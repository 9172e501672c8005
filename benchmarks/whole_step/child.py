"""One way of training on a shape, in a process of its own: a step each time it is told to."""

import copy
import json
import sys
import tempfile
import time
from typing import Any

from benchmarks.memory import status
from benchmarks.whole_step.shapes import BODIES, TOKENIZER, Shape, rows, word_rows, word_tokenizer

WAYS = ("prefkit", "prefkit separate", "trl", "trl with prefkit", "trl with prefkit, padded")


def child(way: str, shape: Shape, model: str | None, steps: int, profile: bool = False) -> None:
    """Trains `steps` steps, each when a line comes in; prints the seconds of each.

    With `profile` the last step is taken under torch's profiler, and told with its GPU kernels.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, TrainerCallback

    of_trl = way.startswith("trl")
    if way == "trl":
        from trl import DPOConfig as Config
        from trl import DPOTrainer as Trainer

        own: dict[str, Any] = {"max_length": None}
    elif of_trl:
        from prefkit.integrations.trl import DPOConfig as Config
        from prefkit.integrations.trl import DPOTrainer as Trainer

        own = {"max_length": None, "prefkit_layout": "padded" if "padded" in way else "auto"}
    else:
        from prefkit import PreferenceConfig as Config
        from prefkit import PreferenceTrainer as Trainer

        own = {"layout": "separate" if "separate" in way else "auto"}
    idle = status("VmRSS")
    if shape.exact:
        tokenizer, data = word_tokenizer(), word_rows(shape, steps)
    else:
        tokenizer = AutoTokenizer.from_pretrained(model or TOKENIZER)
        data = rows(shape, tokenizer, steps)
    if model:
        policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    else:
        with torch.device(shape.device):
            policy = AutoModelForCausalLM.from_config(LlamaConfig(**BODIES[shape.body]))
    # TRL loads its reference by the model's name, which random weights do not have.
    reference = None if model else copy.deepcopy(policy)
    tokens = 0
    read: list[int] = []  # by each forward of the policy

    def now() -> float:
        if shape.device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter()

    def memory() -> int:
        if shape.device != "cpu":
            return torch.cuda.max_memory_allocated()
        return status("VmHWM") - idle

    class Turns(TrainerCallback):
        steps = 0
        kernels: Kernels | None = None

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            sys.stdin.readline()
            read.clear()
            self.steps += 1
            if profile and self.steps == steps:
                self.kernels = Kernels()
            self.start = now()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            seconds = now() - self.start
            told = self.kernels.stop() if self.kernels else []
            tell({"seconds": seconds, "memory": memory(), "read": sum(read), "kernels": told})

    with tempfile.TemporaryDirectory() as folder:
        args = Config(
            output_dir=folder,
            per_device_train_batch_size=1,
            max_steps=steps,
            learning_rate=1e-6,
            beta=0.1,
            gradient_checkpointing=shape.checkpointing,
            bf16=shape.bf16,
            report_to="none",
            save_strategy="no",
            logging_steps=1000,
            disable_tqdm=True,
            use_cpu=shape.device == "cpu",
            **own,
        )
        given: Any = data
        if of_trl:
            from datasets import Dataset

            given = Dataset.from_list(data)
        trainer = Trainer(
            policy,
            ref_model=reference,
            args=args,
            train_dataset=given,
            processing_class=tokenizer,
            callbacks=[Turns()],
        )
        # Not before: a reference that is copied from the policy would count its own tokens too.
        trainer.model.get_input_embeddings().register_forward_hook(
            lambda module, given, out: read.append(given[0].numel())
        )
        for row in data[:1]:
            for side in ("chosen", "rejected"):
                text = row["prompt"] + row[side]
                tokens += len(tokenizer(text, add_special_tokens=False)["input_ids"]) + 1
        weights = sum(p.numel() * p.element_size() for p in trainer.model.parameters())
        tell({"ready": True, "tokens": tokens, "kept": 5 * weights})  # see `Result.kept`
        trainer.train()


class Kernels:
    """torch's profiler from its making on."""

    def __init__(self) -> None:
        from torch.profiler import ProfilerActivity, profile, supported_activities

        gpu = ProfilerActivity.CUDA in supported_activities()
        self.profiler = profile(activities=[ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU])
        self.profiler.start()

    def stop(self) -> list[tuple[str, float, int]]:
        """Name, milliseconds and number of calls of what ran on the GPU, the longest first."""
        self.profiler.stop()
        found = [
            (event.key[:200], event.self_device_time_total / 1e3, event.count)
            for event in self.profiler.key_averages()
            if event.self_device_time_total > 0
        ]
        return sorted(found, key=lambda kernel: -kernel[1])


def tell(message: dict[str, Any]) -> None:
    print("@" + json.dumps(message), file=sys.stderr, flush=True)
