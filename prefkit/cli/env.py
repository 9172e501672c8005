"""`prefkit env`: what this machine has, for bug reports and for choosing options."""

import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prefkit.options.command import Command
from prefkit.options.parse import read_flags, split


@dataclass(kw_only=True)
class EnvOptions:
    """How `prefkit env` prints."""

    json: bool = False
    """One JSON object."""


COMMAND = Command(
    name="env",
    line=("[--json]", "versions and devices"),
    about="Versions, devices and what of prefkit can be used here.",
    options=(EnvOptions,),
)
_PACKAGES = (
    "prefkit",
    "torch",
    "transformers",
    "accelerate",
    "datasets",
    "peft",
    "safetensors",
    "triton",
    "flash-attn",
    "liger-kernel",
    "deepspeed",
    "bitsandbytes",
    "trl",
)


def describe() -> dict[str, Any]:
    """Versions, devices and what of prefkit can be used here."""
    import torch

    from prefkit.version import VERSION

    packages = {name: _version(name) for name in _PACKAGES}
    packages["prefkit"] = packages["prefkit"] or VERSION
    gpus = [_gpu(index) for index in range(torch.cuda.device_count())]
    triton = importlib.util.find_spec("triton") is not None
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpu_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "torch_threads": torch.get_num_threads(),
        "packages": packages,
        "gpus": gpus,
        "cuda": torch.version.cuda,
        "head_backend": "triton" if triton and gpus else "torch",
        "lora": packages["peft"] is not None,
        "bf16": bool(gpus) and torch.cuda.is_bf16_supported(),
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _gpu(index: int) -> dict[str, Any]:
    import torch

    properties = torch.cuda.get_device_properties(index)
    return {
        "name": properties.name,
        "memory_gb": round(properties.total_memory / 2**30, 1),
        "compute_capability": f"{properties.major}.{properties.minor}",
    }


def run(argv: Sequence[str]) -> int:
    """Prints the description, for people or as one JSON object.

    Raises:
        ConfigError: a flag that cannot be read.
    """
    _, flags = split(COMMAND, argv)
    options = EnvOptions(**read_flags(COMMAND, flags))
    found = describe()
    if options.json:
        print(json.dumps(found, indent=1))
        return 0
    print(f"Python {found['python']} on {found['system']}, {sys.executable}")
    print(f"{found['cpu_cores']} cores, {found['torch_threads']} torch threads")
    for gpu in found["gpus"]:
        print(f"GPU {gpu['name']}, {gpu['memory_gb']} GB, capability {gpu['compute_capability']}")
    if not found["gpus"]:
        print("No GPU: everything runs on the CPU")
    for name, version in found["packages"].items():
        print(f"  {name:14} {version or '-'}")
    print(f"The fused head uses the {found['head_backend']} backend; lora: {_yes(found['lora'])}")
    return 0


def _yes(value: bool) -> str:
    return "available" if value else "not installed"
