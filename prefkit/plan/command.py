"""The command line that would run what was planned."""

import shlex
from collections.abc import Sequence

import torch

from prefkit.errors import ConfigError
from prefkit.plan.inputs.setting import Setting

PER_MACHINE = 8  # GPUs of the usual machine

_PRECISIONS = {None: "no", torch.bfloat16: "bf16", torch.float16: "fp16"}


def machines_of(setting: Setting) -> tuple[int, int]:
    """(machines, processes of each): the fewest machines of at most 8 GPUs with as many on each.

    Raises:
        ConfigError: more than 8 GPUs whose number is a prime: no equal machines have that many.
    """
    if setting.on_cpu or setting.gpus <= PER_MACHINE:
        return 1, setting.gpus
    for each in range(PER_MACHINE, 1, -1):
        if setting.gpus % each == 0:
            return setting.gpus // each, each
    near = setting.gpus // PER_MACHINE * PER_MACHINE
    raise ConfigError(
        f"gpus is {setting.gpus}, which machines of at most {PER_MACHINE} GPUs cannot have with as "
        f"many on each. Take --gpus {near} or {near + PER_MACHINE}."
    )


def command_of(setting: Setting, words: Sequence[str], launcher: str | None) -> str:
    """One command, or one for each machine.

    Args:
        setting: of the run.
        words: arguments of `prefkit plan` without its own.
        launcher: the accelerate config, or None.

    Raises:
        ConfigError: see `machines_of`.
    """
    train = " ".join(["train", *map(shlex.quote, words)])
    if setting.gpus == 1 and not (launcher and setting.sharded):
        return f"prefkit {train}"
    machines, per_node = machines_of(setting)
    lines = []
    if machines > 1:
        lines.append(f"# on each of {machines} machines of {per_node} GPUs, RANK from 0:")
    nodes = (
        f" --num_machines {machines} --machine_rank $RANK --main_process_ip $HEAD" if lines else ""
    )
    nodes += " --main_process_port 29500" if lines else ""
    if launcher is not None:
        # accelerate divides the processes by the machines of its file.
        nodes = nodes or " --num_machines 1 --machine_rank 0"
        start = f"accelerate launch --config_file {shlex.quote(launcher)}"
        start += f" --num_processes {setting.gpus}{nodes}"
    elif setting.sharding == "fsdp2":
        start = f"accelerate launch --num_processes {setting.gpus}{nodes} {_fsdp_flags(setting)}"
    elif lines:
        start = (
            f"torchrun --nnodes {machines} --node_rank $RANK --nproc_per_node {per_node} "
            "--master_addr $HEAD"
        )
    else:
        start = f"torchrun --nproc_per_node {setting.gpus}"
    lines.append(f"{start} -m prefkit {train}")
    return "\n".join(lines)


def _fsdp_flags(setting: Setting) -> str:
    flags = {
        "use_fsdp": None,
        "fsdp_version": "2",
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "fsdp_reshard_after_forward": "true",
        "fsdp_state_dict_type": "SHARDED_STATE_DICT",
        "fsdp_cpu_ram_efficient_loading": "true",
        "fsdp_offload_params": "true" if setting.offload_params else None,
        "fsdp_activation_checkpointing": "true" if setting.checkpointing else None,
        "fsdp_activation_checkpointing_offload": "true" if setting.offload else None,
        "mixed_precision": _PRECISIONS[setting.mixed],
    }
    return " ".join(
        f"--{name}" + (f" {value}" if value else "")
        for name, value in flags.items()
        if value or name == "use_fsdp"
    )
