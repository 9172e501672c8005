"""How long does one optimiser step of a whole trainer take, and how much memory, beside TRL's?

    python -m benchmarks.whole_step [--shape steps answers] [--model FOLDER] [--rounds 5]

Real trainers on the same rows: `PreferenceTrainer` in its layouts and TRL's `DPOTrainer`, fp32,
AdamW, one pair a step, the reference a frozen copy. Each lives in a process of its own and takes
one step when it is its turn, so that a drift of the machine's speed meets all alike. Time: from the
start of the step's forward to the end of the optimiser's step, first step left out. Memory: the
process's peak resident size less its size before the model was loaded.

Without --model (or PREFKIT_SMOLLM2) the model is SmolLM2-135M's architecture with random weights,
which takes the same time.

The same on a GPU: a shape that says so is trained in bf16 mixed precision, its rows are words of
one token each (so that the two sides have one length, and TRL's attention needs no mask of
padding), and memory is the peak of torch's allocator. `benchmarks.gpu.trainers` runs those.
"""

import argparse
import contextlib
import copy
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.memory import ALLOCATOR, status

ROOT = Path(__file__).parents[1]
TOKENIZER = ROOT / "prefkit" / "demo" / "assets" / "model"
WAYS = ("prefkit", "prefkit separate", "trl", "trl with prefkit", "trl with prefkit, padded")
# The bodies that are built where no model is given. SmolLM2-135M's shape; and one so small that the
# vocabulary is what counts.
BODIES: dict[str, dict[str, Any]] = {
    "smollm2": {
        "vocab_size": 49_152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "tie_word_embeddings": True,
        "max_position_embeddings": 8192,
    },
    "tiny": {
        "vocab_size": 128_256,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "tie_word_embeddings": False,
        "max_position_embeddings": 65_536,
    },
    # Llama-3.2-1B's shape.
    "llama-1b": {
        "vocab_size": 128_256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": True,
        "max_position_embeddings": 131_072,
    },
    "minute": {
        "vocab_size": 1024,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        "max_position_embeddings": 1024,
    },
}
WORDS = 1000  # one-token words of the rows that need exact lengths


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Tokens of the shared prefix, the chosen and the rejected side; and the body they run in.

    Attributes:
        checkpointing: of activations, for every way.
        bf16: mixed precision; weights stay fp32.
        exact: rows of words of one token, so that lengths are exactly these.
        device: "cpu" or "cuda".
    """

    prefix: int
    chosen: int
    rejected: int
    words: str = ""
    body: str = "smollm2"
    checkpointing: bool = False
    bf16: bool = False
    exact: bool = False
    device: str = "cpu"


SHAPES = {
    "steps": Shape(prefix=512, chosen=20, rejected=25, words="a long prefix and one step a side"),
    "answers": Shape(prefix=32, chosen=300, rejected=280, words="a short prompt and long answers"),
}


@dataclass(frozen=True)
class Result:
    """One way's steps of one shape: seconds each, tokens of both sides, bytes above idle, tokens
    that the policy read in one step (a shared prefix once)."""

    seconds: list[float]
    tokens: int
    memory: int
    read: int = 0

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def rows(shape: Shape, tokenizer: Any, count: int) -> list[dict[str, str]]:
    """Pairs of about the shape's lengths, cut from the project's own pages.

    From the embedded pairs where the tokenizer is the embedded one, which knows arithmetic alone.
    """
    pages = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "CHANGELOG.md"]
    text = "\n".join(page.read_text("utf-8") for page in pages)
    if len(tokenizer) < 100:
        solved = map(json.loads, (TOKENIZER.parent / "pairs.jsonl").read_text("utf-8").splitlines())
        text = "".join(row["prompt"] + row["full_chosen"] for row in solved)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    lengths = (shape.prefix, shape.chosen, shape.rejected)
    ids = ids * -(-(sum(lengths) + 37 * count) // len(ids))  # long rows repeat the pages
    found = []
    for i in range(count):
        place, parts = 37 * i, []
        for length in lengths:
            parts.append(tokenizer.decode(ids[place : place + length]))
            place += length
        found.append({"prompt": parts[0], "chosen": parts[1], "rejected": parts[2]})
    return found


def word_tokenizer() -> Any:
    """Words w0, w1, … of one token each, whatever stands beside them."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ("<unk>", "<eos>", *(f"w{i}" for i in range(WORDS)))
    ids = {name: i for i, name in enumerate(names)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"unk_token": "<unk>", "eos_token": "<eos>", "pad_token": "<eos>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def word_rows(shape: Shape, count: int) -> list[dict[str, str]]:
    """Pairs of exactly the shape's lengths; every row and side its own words."""
    draw = random.Random(0)

    def words(length: int) -> str:
        return "".join(f" w{draw.randrange(WORDS)}" for _ in range(length))

    lengths = {"prompt": shape.prefix, "chosen": shape.chosen, "rejected": shape.rejected}
    return [{name: words(length) for name, length in lengths.items()} for _ in range(count)]


# -- a process a way -------------------------------------------------------------------------------


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
        tell({"ready": True, "tokens": tokens})
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


class Contestant:
    """A child process that takes one step a turn."""

    def __init__(
        self,
        way: str,
        shape: Any,
        model: str | None,
        steps: int,
        wait: bool = True,
        profile: bool = False,
        module: str = "benchmarks.whole_step",
        more: Sequence[str] = (),
        allocator: Mapping[str, str] = ALLOCATOR,
    ) -> None:
        """Starts the process; `wait` False: several can start at once, then `ready` is theirs.

        With `profile`, `kernels` has those of the last step. `module` is what runs, and `more` are
        further words of its command line. `allocator`: variables; the usual ones give every free
        byte back at once, which makes peaks exact and steps of many small tensors slower.
        """
        command = [sys.executable, "-m", module, "--child", way, *more]
        command += ["--child-shape", json.dumps(asdict(shape)), "--rounds", str(steps)]
        command += ["--model", model or ""] + ["--child-profile"] * profile
        # Threads that wait must sleep: those of the ways that are not at turn would take the cores.
        quiet = {"OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1"}
        environment = {**os.environ, **allocator, **quiet}
        self.process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.way = way
        self.said: list[str] = []
        self.seconds: list[float] = []
        self.tokens = self.memory = self.read = 0
        self.kernels: list[tuple[str, float, int]] = []
        if wait:
            self.ready()

    def ready(self) -> None:
        """Waits until the first step can be taken."""
        self.tokens = int(self._next()["tokens"])

    def _next(self) -> dict[str, Any]:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if line.startswith("@"):
                return dict(json.loads(line[1:]))
            self.said.append(line)
        code = self.process.wait()
        why = " (killed, as when memory runs out: let fewer ways take turns)" if code < 0 else ""
        raise RuntimeError(f"{self.way} ended, exit status {code}{why}\n{''.join(self.said[-15:])}")

    def step(self) -> dict[str, Any]:
        """One optimiser step, timed by the child, and what the child told of it."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # one that ended: `_next` says how
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
        told = self._next()
        self.seconds.append(told["seconds"])
        self.memory, self.read = told["memory"], told["read"]
        self.kernels = told.get("kernels", [])
        return told

    def result(self) -> Result:
        """Of the steps after the first, which is warm-up."""
        return Result(self.seconds[1:], self.tokens, self.memory, self.read)


def measure(shape: Shape, ways: Sequence[str], model: str | None, rounds: int) -> dict[str, Result]:
    """All ways, taking turns; the first step of each is warm-up and memory, not time.

    Raises:
        RuntimeError: a way failed; with its last lines.
    """
    running = {way: Contestant(way, shape, model, rounds + 1) for way in ways}
    try:
        for turn in range(rounds + 1):
            order = list(running)
            for way in order[turn % len(order) :] + order[: turn % len(order)]:
                running[way].step()
    finally:
        for one in running.values():
            one.process.kill()
    return {way: one.result() for way, one in running.items()}


def table(shape: Shape, results: dict[str, Result]) -> str:
    """Markdown: each way's step beside the first's."""
    first = next(iter(results.values()))
    lines = [
        f"### {shape.words}: {shape.prefix} + {shape.chosen} | {shape.rejected} tokens",
        "",
        "| way | s a step (least–most) | × prefkit | tokens/s | MB above idle | × prefkit |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for way, got in results.items():
        spread = f"{got.median:.2f} ({min(got.seconds):.2f}–{max(got.seconds):.2f})"
        ratios = f"{got.median / first.median:.2f}", f"{got.memory / first.memory:.2f}"
        rate = f"{got.tokens / got.median:.0f}"
        cells = (way, spread, ratios[0], rate, f"{got.memory / 1e6:.0f}", ratios[1])
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--way", nargs="+", choices=WAYS, default=list(WAYS[:3]))
    parser.add_argument("--model", default=os.environ.get("PREFKIT_SMOLLM2"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--child-shape", help=argparse.SUPPRESS)
    parser.add_argument("--child-profile", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        shape = Shape(**json.loads(options.child_shape))
        model = options.model or None
        return child(options.child, shape, model, options.rounds, options.child_profile)
    from benchmarks import machine

    print(", ".join(f"{name} {value}" for name, value in machine.facts("cpu").items()))
    weights = "SmolLM2-135M" if options.model else "SmolLM2-135M's shape, random weights"
    print(f"{weights}, fp32, one pair a step, {options.rounds} rounds after one of warm-up\n")
    for shape in (SHAPES[name] for name in options.shape):
        print(table(shape, measure(shape, options.way, options.model, options.rounds)) + "\n")


if __name__ == "__main__":
    main()
