"""What an accelerate config file and a DeepSpeed file say about a run's processes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefkit.errors import ConfigError


def read_launcher(path: str | None) -> dict[str, Any]:
    """The parts of an accelerate config file that matter here; {} without a file.

    Returns:
        num_processes, mixed_precision, fsdp (mapping without the prefix `fsdp_`) or None,
        zero_stage (of DeepSpeed) or None.
    Raises:
        ConfigError: the file cannot be read, is no accelerate config, or asks for FSDP1.
    """
    if path is None:
        return {}
    from prefkit.options.yaml_file import read_yaml

    content = read_yaml(path)
    if "distributed_type" not in content:
        remedy = "Give a file that `accelerate config` writes"
        if {"zero_optimization", "train_batch_size"} & set(content):
            remedy = f"This is a DeepSpeed config: give it with --deepspeed {path}"
        raise ConfigError(
            f"accelerate_config: {path} has no distributed_type, so it is no config of accelerate. "
            f"{remedy}."
        )
    kind = str(content["distributed_type"]).upper()
    fsdp = content.get("fsdp_config") or {}
    fsdp = {str(key).removeprefix("fsdp_"): value for key, value in fsdp.items()}
    if kind == "FSDP" and str(fsdp.get("version", 1)) != "2":
        raise ConfigError(
            f"{path}: fsdp_version must be 2; the head's gradient is exact only there."
        )
    return {
        "num_processes": content.get("num_processes"),
        "mixed_precision": str(content.get("mixed_precision", "no")),
        "fsdp": fsdp if kind == "FSDP" else None,
        "zero_stage": _launched_stage(content, path) if kind == "DEEPSPEED" else None,
    }


def zero_stage(deepspeed: str | Mapping[str, Any] | None) -> int | None:
    """The ZeRO stage of a DeepSpeed config.

    Args:
        deepspeed: its file (JSON), or its content; None = no DeepSpeed.

    Returns:
        0 where the config names none, as DeepSpeed takes it; None without a config.
    Raises:
        ConfigError: the file cannot be read, or the stage is not planned (1 or 2).
    """
    if not deepspeed:
        return None
    where = "deepspeed"
    if isinstance(deepspeed, str):
        where, deepspeed = f"deepspeed: {deepspeed}", _read_json(deepspeed)
    stage = (deepspeed.get("zero_optimization") or {}).get("stage", 0)
    return _planned(stage, where)


def _launched_stage(content: Mapping[str, Any], path: str) -> int:
    """accelerate takes ZeRO-2 where its own file names no stage."""
    given = content.get("deepspeed_config") or {}
    if file := given.get("deepspeed_config_file"):
        stage = zero_stage(str(file))
        return 0 if stage is None else stage
    return _planned(given.get("zero_stage", 2), path)


def _read_json(file: str) -> dict[str, Any]:
    try:
        content = json.loads(Path(file).expanduser().read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"deepspeed: there is no config file {file}.") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"deepspeed: {file} cannot be read as JSON ({error}).") from error
    if not isinstance(content, dict):
        raise ConfigError(f"deepspeed: {file} must hold a JSON object.")
    return content


def _planned(stage: Any, where: str) -> int:
    if str(stage) not in ("0", "3"):
        raise ConfigError(
            f"{where}: ZeRO stage {stage} is not planned, only stage 3 and stage 0 (replicas). "
            "Plan FSDP2 (--fsdp true), or set the stage to 3."
        )
    return int(stage)
