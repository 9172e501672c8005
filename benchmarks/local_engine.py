"""How fast does the local engine of a build sample, beside plain `generate`? And what does it cost
that every row has a seed of its own?

    python -m benchmarks.local_engine MODEL questions.jsonl --questions 4 --samples 8 --tokens 150

Both write the same number of samples of the same questions in one batch, in turn, in one process.
Tokens count until a text ends; plain `generate` goes on with ended rows until the last has ended.
Time is processor time of the process, so a busy machine does not enter with OMP_NUM_THREADS=1.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import facts


def chats(tokenizer: Any, path: Path, count: int) -> list[str]:
    """Questions of a JSONL file (field "question"), put into the model's chat form."""
    lines = path.read_text(encoding="utf-8").splitlines()[:count]
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": json.loads(line)["question"]}],
            tokenize=False,
            add_generation_prompt=True,
        )
        for line in lines
    ]


def ours(engine: Any, texts: list[str], samples: int, tokens: int, top_p: float) -> int:
    """One batch by the engine; returns the tokens written."""
    from prefkit.pairs.engines.base import Request, seed_of

    requests = []
    for number, text in enumerate(texts):
        for sample in range(samples):
            key = f"{number}/solution/{sample}"
            how: dict[str, Any] = {"temperature": 0.8, "top_p": top_p, "max_tokens": tokens}
            requests.append(Request(key=key, text=text, is_chat=True, seed=seed_of(0, key), **how))
    return sum(c.tokens for batch in engine.batches(requests) for c in engine.sample(batch))


def plain(engine: Any, texts: list[str], samples: int, tokens: int, top_p: float) -> int:
    """The same by one call of `generate` that samples."""
    import torch

    tokenizer, model = engine.tokenizer, engine._model
    tokenizer.padding_side = "left"
    inputs = tokenizer(
        [text for text in texts for _ in range(samples)],
        return_tensors="pt",
        padding=True,
        add_special_tokens=False,
    ).to(model.device)
    torch.manual_seed(0)
    written = model.generate(
        **inputs,
        do_sample=True,
        temperature=0.8,
        top_p=top_p,
        top_k=0,
        max_new_tokens=tokens,
        pad_token_id=tokenizer.pad_token_id,
    )[:, inputs["input_ids"].shape[1] :]
    ended = (written == tokenizer.eos_token_id).long()
    return int((ended.cumsum(1) - ended == 0).sum())


class Clock:
    """Processor seconds spent inside a method, added up."""

    def __init__(self, owner: type, name: str) -> None:
        self.seconds, timed = 0.0, getattr(owner, name)

        def measured(*arguments: Any, **named: Any) -> Any:
            started = time.process_time()
            try:
                return timed(*arguments, **named)
            finally:
                self.seconds += time.process_time() - started

        setattr(owner, name, measured)


def main() -> None:
    from prefkit.pairs.engines.local.engine import LocalEngine
    from prefkit.pairs.engines.local.sampling import RowEnds, RowSampler

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("file", type=Path)
    parser.add_argument("--questions", type=int, default=4)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    engine = LocalEngine(options.model, batch_size=options.questions * options.samples)
    texts = chats(engine.tokenizer, options.file, options.questions)
    clocks = [Clock(RowSampler, "__call__"), Clock(RowEnds, "__call__")]
    print("; ".join(f"{name} {value}" for name, value in facts("cpu").items()) + "\n")
    print("| top_p | way | tokens | s | tokens/s | of it sampling and ends |")
    print("| --- | --- | --- | --- | --- | --- |")
    ours(engine, texts[:1], 1, 4, 1.0)  # warm
    for top_p in (1.0, 0.95):
        for _ in range(options.rounds):
            for name, way in (("engine", ours), ("plain generate", plain)):
                before = sum(clock.seconds for clock in clocks)
                started = time.process_time()
                tokens = way(engine, texts, options.samples, options.tokens, top_p)
                seconds = time.process_time() - started
                inside = (sum(clock.seconds for clock in clocks) - before) / seconds
                share = f"{inside:.1%}" if way is ours else "not told apart"
                print(
                    f"| {top_p:g} | {name} | {tokens} | {seconds:.1f} | {tokens / seconds:.1f} | "
                    f"{share} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
