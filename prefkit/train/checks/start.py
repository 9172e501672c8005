"""How a run is started: by this process and its launcher, or as a plan supposes."""

import os
from dataclasses import dataclass
from typing import Any

import torch

from prefkit.errors import ConfigError
from prefkit.train.checks.sharding import LAUNCH, asks_for_fsdp, flag, fsdp_settings, processes


@dataclass(frozen=True, kw_only=True)
class Start:
    """What of a start decides whether a run can work.

    Args:
        processes: of the whole run.
        shared_by: how many of them share a row (`sequence_parallel_size`).
        fsdp, deepspeed: the options or the launcher ask for it.
        alone: there is nobody to shard a model with.
        remedy: what starts more processes, in words that begin a sentence.
        supposed: the run is only described, so this machine is not asked what it can do.
    """

    processes: int
    shared_by: int
    fsdp: bool
    deepspeed: bool
    alone: bool
    remedy: str
    supposed: bool = False

    @classmethod
    def here(cls, config: Any) -> "Start":
        """This process: what the options and the launcher's variables say."""
        on_cpu = config.use_cpu or not torch.accelerator.is_available()
        return cls(
            processes=processes(),
            shared_by=getattr(config, "sequence_parallel_size", 1),
            fsdp=asks_for_fsdp(config),
            deepspeed=bool(config.deepspeed or flag(os.environ.get("ACCELERATE_USE_DEEPSPEED"))),
            alone="LOCAL_RANK" not in os.environ or (on_cpu and processes() < 2),
            remedy=LAUNCH,
        )


def check_processes(config: Any, start: Start) -> None:
    """Refuses sharding that a start cannot do.

    Raises:
        ConfigError: FSDP in one process, or options of FSDP that a CPU does not have.
    """
    if not start.fsdp:
        return
    if start.alone:
        raise ConfigError(
            "fsdp shards a model over several processes, and this is one alone. "
            f"{start.remedy}, or leave fsdp out."
        )
    if start.supposed or not (config.use_cpu or not torch.accelerator.is_available()):
        return
    if torch.accelerator.is_available():
        raise ConfigError(
            "fsdp with use_cpu: FSDP would still take the accelerator that it sees. Hide it "
            "(CUDA_VISIBLE_DEVICES=) to train on the CPU, or leave use_cpu out."
        )
    if flag(fsdp_settings(config)["cpu_offload"]):
        raise ConfigError(
            "fsdp_config: cpu_offload moves shards from an accelerator to the CPU, and this run is "
            "on the CPU already. Leave it out."
        )
