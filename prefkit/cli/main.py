"""The command `prefkit`. Everything heavy is imported only when it is used."""

import argparse
import contextlib
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

from prefkit.errors import PrefkitError

_OVERVIEW = """\
usage: prefkit COMMAND …

  build METHOD QUESTIONS --model M --out DIR    pairs from questions and the model's own mistakes
  score PAIRS --positive P --negative N --out F weigh their tokens by two models (cDPO)
  inspect PAIRS --model M [--json]              show which tokens are scored, with what weight
  plan CONFIG.yaml [--gpus N] [--json]          memory, work and command of a run, before it
  train CONFIG.yaml [--field value …]           train a model on preference pairs
  evaluate QUESTIONS --model M --out DIR        how many questions a model solves
  demo [--seed N] [--method METHOD]             train the embedded tiny model: a minute on a CPU
  env [--json]                                  versions and devices

  --version    print the version
  --help       this text; `prefkit COMMAND --help` tells more
"""

_TRAIN_USAGE = """\
usage: prefkit train [CONFIG.yaml] [--field value …]

Every option is a key of the YAML and a flag; the flag wins. A flag without a value means
true, several values make a list."""

# The fields of transformers.TrainingArguments that most runs set.
_COMMON = {
    "num_train_epochs": "Passes over the data (3).",
    "max_steps": "Optimiser steps; overrides num_train_epochs.",
    "gradient_accumulation_steps": "Batches an optimiser step; the gradient is the large batch's.",
    "lr_scheduler_type": "linear, cosine, constant, … (linear).",
    "warmup_steps": "Steps, or a share of the run below 1, until the peak learning rate (0).",
    "optim": "Optimiser (adamw_torch_fused).",
    "weight_decay": "Decoupled weight decay (0).",
    "max_grad_norm": "Gradient clipping (1).",
    "bf16": "Mixed precision in bfloat16 (false).",
    "gradient_checkpointing": "Recompute activations to save memory (false). Its name is "
    "activation_checkpointing from transformers 5.23 on.",
    "use_liger_kernel": "Liger's kernels in the model's body; its loss stays off (false).",
    "fsdp": "Shard policy and reference over processes by FSDP2: true (docs/sharding.md).",
    "fsdp_config": "Its settings, as JSON or a file.",
    "deepspeed": "JSON file of DeepSpeed ZeRO-3, in place of fsdp.",
    "save_steps": "Steps between two checkpoints (500).",
    "save_total_limit": "Newest checkpoints to keep (all).",
    "resume_from_checkpoint": "auto = newest complete checkpoint, if any; true; or a folder.",
    "eval_strategy": "no, steps or epoch (no).",
    "eval_steps": "Steps between two evaluations.",
    "load_best_model_at_end": "End with the best checkpoint's weights (false).",
    "metric_for_best_model": "What is best by: loss, rewards/margins, … of an evaluation (loss).",
    "report_to": "wandb, tensorboard, trackio, … (none).",
    "seed": "Seed of everything random (42).",
}


def _train_help() -> str:
    from prefkit.options.help import groups, write_help
    from prefkit.options.option import field_docs
    from prefkit.train.fields import PreferenceFields, ScriptArguments

    sections: list[tuple[str, dict[str, str]]] = [("what to load", field_docs(ScriptArguments))]
    docs = field_docs(PreferenceFields)
    for title, names in groups(PreferenceFields):
        sections.append((title, {name: docs[name] for name in names}))
    sections.insert(-1, ("the run (of transformers.TrainingArguments)", _COMMON))
    return write_help(
        _TRAIN_USAGE,
        sections,
        (ScriptArguments, PreferenceFields),
        tail="Every other field of transformers.TrainingArguments is a flag as well.",
    )


def _train(argv: Sequence[str]) -> int:
    if "--help" in argv or "-h" in argv:
        sys.stdout.write(_train_help())
        return 0
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    from prefkit.options.parse import load_options
    from prefkit.train.checks.options import one_line_errors

    with one_line_errors():
        options = load_options(argv)
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    # Its lines about every retry say no more than the one message at the end.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    return import_module("prefkit.cli.train").run(options, " ".join(argv))


def _inspect(argv: Sequence[str]) -> int:
    module = import_module("prefkit.cli.inspect")
    parser = _Parser(prog="prefkit inspect", description=module.__doc__)
    module.add_arguments(parser)
    return int(module.run_arguments(parser.parse_args(argv)))


def _plan(argv: Sequence[str]) -> int:
    import gc

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    gc.disable()  # looking through what the imports make takes a fifth of the command's time
    try:
        return int(import_module("prefkit.cli.plan").run(argv))
    finally:
        gc.enable()


def _build(argv: Sequence[str]) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    return int(import_module("prefkit.cli.build").run_build(argv))


def _evaluate(argv: Sequence[str]) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    return int(import_module("prefkit.cli.build").run_evaluate(argv))


def _score(argv: Sequence[str]) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    return int(import_module("prefkit.cli.score").run(argv))


def _env(argv: Sequence[str]) -> int:
    parser = _Parser(prog="prefkit env", description="Versions and devices.")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    arguments = parser.parse_args(argv)
    return int(import_module("prefkit.cli.env").run(as_json=arguments.json))


def _demo(argv: Sequence[str]) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    return int(import_module("prefkit.demo.run").main(argv))


class _Parser(argparse.ArgumentParser):
    """Reports a wrong flag as every other mistake is reported."""

    def error(self, message: str) -> None:  # type: ignore[override]
        raise PrefkitError(f"{self.prog}: {message}. `{self.prog} --help` lists the flags.")


_COMMANDS = {
    "build": _build,
    "score": _score,
    "inspect": _inspect,
    "plan": _plan,
    "train": _train,
    "evaluate": _evaluate,
    "demo": _demo,
    "env": _env,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code.

    0 done, 1 a loss that became NaN, 2 a user's mistake, 130 interrupted.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("--help", "-h", "help"):
        sys.stdout.write(_OVERVIEW)
        return 0 if argv else 2
    if argv[0] == "--version":
        from prefkit import __version__

        print(f"prefkit {__version__}")
        return 0
    try:
        if argv[0] not in _COMMANDS:
            raise PrefkitError(f"'{argv[0]}' is no command. Use one of: {', '.join(_COMMANDS)}.")
        code = _COMMANDS[argv[0]](argv[1:])
        sys.stdout.flush()  # a full disk shows here
        return code
    except PrefkitError as error:
        if os.environ.get("PREFKIT_TRACEBACK"):
            traceback.print_exc()
        print(f"prefkit: {error}", file=sys.stderr)
        return getattr(error, "exit_code", 2)
    except KeyboardInterrupt:
        print("\nprefkit: interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `prefkit inspect … | head`
        sys.stderr.close()
        return 0
    except OSError as error:
        if argv[0] == "train":
            raise  # in the middle of a run: where it happened matters
        if os.environ.get("PREFKIT_TRACEBACK"):
            traceback.print_exc()
        print(f"prefkit: {argv[0]}: {error}. (PREFKIT_TRACEBACK=1 shows more.)", file=sys.stderr)
        with contextlib.suppress(OSError):
            sys.stdout.close()  # or Python would complain of what it could not write at exit
        return 2


if __name__ == "__main__":
    sys.exit(main())
