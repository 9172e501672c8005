"""TRL's own script for DPO with prefkit's trainer and options.

    python -m prefkit.integrations.trl --model_name_or_path MODEL --dataset_name DATA …
    accelerate launch -m prefkit.integrations.trl --config run.yaml --prefkit_method tdpo2

Arguments are those of `trl dpo`, and the options of `prefkit.integrations.trl.DPOConfig`.
"""

from collections.abc import Sequence
from typing import Any

import trl
from trl.scripts import dpo

from prefkit.integrations.trl import DPOConfig, DPOTrainer


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the script; arguments None = those of the command line."""
    package: Any = trl  # from which the script takes both names when it runs
    theirs = package.DPOConfig, package.DPOTrainer
    package.DPOConfig, package.DPOTrainer = DPOConfig, DPOTrainer
    try:
        parser = dpo.make_parser(prog="python -m prefkit.integrations.trl")
        dpo.main(*parser.parse_args_and_config(arguments))
    finally:
        package.DPOConfig, package.DPOTrainer = theirs


if __name__ == "__main__":
    main()
