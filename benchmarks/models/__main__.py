"""Looks at types of models one after the other, and writes docs/models.md.

    python -m benchmarks.models                        the models that most people train
    python -m benchmarks.models --all --write docs/models.md
    python -m benchmarks.models --types llama,mamba2 --lora
    python -m benchmarks.models --all --out found.jsonl    types that are in the file are left out

Ends with 1 if any type is wrong or crashes. From a checkout without an installation:
PYTHONPATH=.:kernels/torch-ext.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
import transformers

from benchmarks.models.miniatures import miniature, model_types
from benchmarks.models.named import NAMED
from benchmarks.models.one import Record, look
from benchmarks.models.page import page, reason_of, summary
from benchmarks.models.pool import each_by_itself

_SECONDS = 120.0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns its exit status."""
    options = _options(arguments)
    torch.set_num_threads(1)  # before anything is forked
    transformers.logging.set_verbosity_error()
    records = _read(options.out)
    left = [name for name in options.names if name not in {one.model_type for one in records}]
    miniature("llama")  # what every type imports, once for all
    start = time.monotonic()
    found = each_by_itself(partial(look, lora=options.lora), left, options.jobs, _SECONDS)
    for count, (name, answer) in enumerate(found, 1):
        record = answer if isinstance(answer, Record) else Record(name, words=answer)
        records.append(record)
        if options.out is not None:
            with options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(record)) + "\n")
        passed = time.monotonic() - start
        _say(f"{count}/{len(left)}, {passed / count * (len(left) - count):.0f} s to go", record)
    chosen = [record for record in records if record.model_type in options.names]
    print(summary(chosen))
    if options.write is not None:
        options.write.write_text(page(chosen), encoding="utf-8")
    return 0 if all(record.good for record in chosen) else 1


def _say(progress: str, record: Record) -> None:
    off = max([0.0, *(record.off64 or record.off32).values()])
    said = f"{record.layout} {off:.0e}" if record.verdict == "right" else ""
    reason = reason_of(record).replace("**", "")
    print(f"[{progress}] {record.model_type}: {said} {reason}", flush=True)


def _read(path: Path | None) -> list[Record]:
    """The records of an earlier run; exits where the file is none of ours."""
    if path is None or not path.exists():
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return [Record(**json.loads(line)) for line in lines]
    except (ValueError, TypeError) as error:
        sys.exit(f"--out: {path} is not of an earlier run ({error}); name another file")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--all", action="store_true", help="every type of transformers")
    which.add_argument("--types", help="these types, separated by commas")
    parser.add_argument("--lora", action="store_true", help="an adapter instead of all weights")
    parser.add_argument("--jobs", type=int, default=2, help="types at a time (2)")
    parser.add_argument("--out", type=Path, help="file of results, one line of JSON a type")
    parser.add_argument("--write", type=Path, help="page to write, such as docs/models.md")
    options = parser.parse_args(arguments)
    known = model_types()
    names = options.types.split(",") if options.types else known if options.all else list(NAMED)
    if unknown := sorted({*names} - {*known}):
        parser.error(f"transformers {transformers.__version__} has no type {', '.join(unknown)}")
    options.names = names
    return options


if __name__ == "__main__":
    sys.exit(main())
