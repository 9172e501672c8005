"""Every way to spread a run that cannot work is refused by name, at once, before a model loads."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import ParallelismConfig
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from prefkit import ConfigError, ModelError
from prefkit.train.checks.sharding import check_model
from prefkit.train.checks.start import Start, check_processes
from tests.train.trainer_cases import config, tiny_model, trainer

ROOT = Path(__file__).parents[2]
FSDP: dict[str, Any] = {"fsdp": True}


def fsdp(**settings: Any) -> dict[str, Any]:
    """FSDP with these settings."""
    return {**FSDP, "fsdp_config": settings}


OPTIONS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "the first FSDP": (fsdp(version=1), ["version is 1", "FSDP2"]),
    "the first FSDP, prefixed": (fsdp(fsdp_version=1), ["version is 1"]),
    "another FSDP": (fsdp(xla=True), ["xla"]),
    "only the root sharded": (fsdp(auto_wrap_policy="NO_WRAP"), ["auto_wrap_policy", "gathered"]),
    "by size": (fsdp(auto_wrap_policy="SIZE_BASED_WRAP"), ["auto_wrap_policy"]),
    "no such file": ({**FSDP, "fsdp_config": "missing.json"}, ["missing.json"]),
    "a list": ({**FSDP, "fsdp_config": [1]}, ["fsdp_config", "mapping"]),
    "precomputed": ({**FSDP, "precompute_ref_log_probs": True}, ["precompute_ref_log_probs"]),
    "batch size by trial": ({**FSDP, "auto_find_batch_size": True}, ["auto_find_batch_size"]),
    "adafactor": ({**FSDP, "optim": "adafactor"}, ["adafactor", "adamw_torch"]),
    "model only": (
        {**fsdp(state_dict_type="SHARDED_STATE_DICT"), "save_only_model": True},
        ["save_only_model"],
    ),
    "tensor parallel": ({"parallelism_config": ParallelismConfig(tp_size=2)}, ["tp_size", "FSDP2"]),
    "context parallel": (
        {"parallelism_config": ParallelismConfig(cp_size=2)},
        ["cp_size", "sequence_parallel_size"],
    ),
    "sequence parallel": (
        {"parallelism_config": ParallelismConfig(sp_size=2)},
        ["sp_size", "sequence_parallel_size"],
    ),
    "batches cut": (
        {"accelerator_config": {"dispatch_batches": True}},
        ["dispatch_batches", "pairs"],
    ),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_options(case: str, tmp_path: Path) -> None:
    options, words = OPTIONS[case]
    with pytest.raises(ConfigError) as caught:
        config(tmp_path, **options)
    for word in words:
        assert word in str(caught.value)


LAUNCHED: dict[str, tuple[dict[str, str], str]] = {
    "first FSDP": ({"FSDP_VERSION": "1"}, "version is 1"),
    "FSDP without wrapping": ({"FSDP_VERSION": "2"}, "auto_wrap_policy is NO_WRAP"),
    "FSDP and DeepSpeed": ({"ACCELERATE_USE_DEEPSPEED": "true"}, "deepspeed"),
    "tensor parallel": (
        {"ACCELERATE_USE_PARALLELISM_CONFIG": "true", "PARALLELISM_CONFIG_TP_SIZE": "2"},
        "tp_size",
    ),
    "Megatron": ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron"),
}


@pytest.mark.parametrize("case", LAUNCHED)
def test_what_a_launcher_asks_for(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables, words = LAUNCHED[case]
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=words):
        config(tmp_path)


def test_starts_that_cannot_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    described = config(tmp_path, **FSDP)  # a config may be described anywhere
    with pytest.raises(ConfigError, match="torchrun"):
        check_processes(described, Start.here(described))
    with pytest.raises(ConfigError, match="torchrun"):
        trainer(tmp_path, **FSDP)
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    if not torch.accelerator.is_available():
        check_processes(described, Start.here(described))
        offloading = fsdp(cpu_offload=True)
        described.fsdp_config = offloading["fsdp_config"]
        with pytest.raises(ConfigError, match="cpu_offload"):
            check_processes(described, Start.here(described))


def test_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, sharding = config(tmp_path), config(tmp_path, **FSDP)
    check_model(tiny_model(), sharding)

    model = tiny_model()
    parameter = model.lm_head.weight
    parameter.ds_id = 0  # as DeepSpeed marks what it has partitioned
    with pytest.raises(ModelError, match="ZeRO-3"):
        check_model(model, plain)
    model = tiny_model()
    model.hf_device_map = {"model": 0, "lm_head": 1}
    check_model(model, plain)
    monkeypatch.setenv("WORLD_SIZE", "2")  # from here on
    with pytest.raises(ModelError, match="device_map"):
        check_model(model, plain)
    model = tiny_model()
    model.quantization_method = "bitsandbytes"
    with pytest.raises(ModelError, match="quantised"):
        check_model(model, sharding)
    model = tiny_model()
    model._no_split_modules = None
    with pytest.raises(ModelError, match="_no_split_modules"):
        check_model(model, sharding)


def test_a_model_cut_by_tensor_parallelism(tmp_path: Path) -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        model = tiny_model()
        cut = distribute_tensor(model.lm_head.weight.detach(), mesh, [Shard(0)])
        model.lm_head.weight = torch.nn.Parameter(cut)
        with pytest.raises(ModelError, match="tp_plan"):
            check_model(model, config(tmp_path))
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_the_command_ends_at_once(processes: int, tmp_path: Path) -> None:
    """Exit code 2 from every process, one line, no model loaded, no waiting for one another."""
    flags = ["--model", str(tmp_path), "--train_data", "none.jsonl", "--fsdp", "true"]
    wrong = ["--fsdp_config", '{"version": 1}'] if processes > 1 else []
    paths = [str(ROOT), str(ROOT / "kernels/torch-ext"), os.environ.get("PYTHONPATH", "")]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    launcher = launcher if processes > 1 else []
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "prefkit.cli.main", "train", *flags, *wrong],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "prefkit: " in done.stderr
    if processes == 1:
        assert done.returncode == 2, done.stderr
    else:
        assert "version is 1" in done.stderr
        assert "exitcode  : 2" in done.stderr  # of torchrun's own report
