"""What decides the memory and the work of a run, read off its options and its launcher's config."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from prefkit.data.batch.bundles import GroupBy
from prefkit.errors import ConfigError
from prefkit.plan.inputs.launcher import zero_stage
from prefkit.plan.inputs.meta_model import Lora

Sharding = Literal["none", "ddp", "fsdp2", "zero3"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
# Bytes a trainable parameter of a few optimisers; all others are taken for AdamW.
_STATES = {"adafactor": 0, "sgd": 0, "rmsprop": 4, "adagrad": 4, "lion": 4, "8bit": 2}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A run, as far as memory and work depend on it.

    Attributes:
        method: for the tables.
        needs_reference, needs_kl, needs_groups: of the loss; `one_pass` whether its gradient can be
            made in the forward by pairs, `one_pass_by_token` by tokens: where they serve several
            sides, and where the loss is no function of a linear margin (`prefkit.loss.passes`).
        precomputed: reference log-probabilities come from disk; `cached_hidden` its hidden states,
            and its head is kept.
        own_reference: the reference is another model than the policy without its adapter.
        lora: the adapter, or None for full fine-tuning.
        weights: dtype the weights are loaded in.
        mixed: dtype of mixed precision, or None.
        checkpointing: layers are recomputed in the backward; `offload`: their inputs wait on the
            host.
        attention: `attn_implementation`, or None.
        dropout: a model's own dropout stays on (`disable_dropout: false`).
        layout, tokens_per_batch, group_by, pairs, pad_to: of the batches; `pairs` a device and
            forward.
        seed: of the order in which pairs are dealt to rows.
        accumulation: batches an optimiser step.
        gpus: processes; `sequence_parallel` of them share one row.
        sharding: how they share the model; `offload_params`: shards wait on the host.
        on_cpu: plan for a CPU run instead of a GPU.
        memory_budget, passes: of the fused head.
        optimizer: name of the optimiser.
    """

    method: str
    needs_reference: bool
    needs_kl: bool
    needs_groups: bool
    one_pass: bool
    one_pass_by_token: bool
    precomputed: bool
    cached_hidden: bool
    own_reference: bool
    lora: Lora | None
    weights: torch.dtype
    mixed: torch.dtype | None
    checkpointing: bool
    offload: bool
    attention: str | None
    dropout: bool
    layout: Literal["auto", "tree", "shared", "separate"]
    tokens_per_batch: int | None
    group_by: GroupBy
    pairs: int
    pad_to: int
    seed: int
    accumulation: int
    gpus: int
    sequence_parallel: int
    sharding: Sharding
    offload_params: bool
    on_cpu: bool
    memory_budget: int | None
    passes: str
    optimizer: str

    @property
    def multiple(self) -> int:
        """Tokens that the length of a row is a multiple of."""
        return math.lcm(self.pad_to, self.sequence_parallel)

    @property
    def sharded(self) -> bool:
        """Whether each process holds a part of the model only."""
        return self.sharding in ("fsdp2", "zero3")

    @property
    def computed(self) -> torch.dtype:
        """dtype of the weights where they are used: gathered shards have the mixed precision's."""
        return self.mixed if self.sharded and self.mixed is not None else self.weights

    @property
    def trained(self) -> torch.dtype:
        """dtype of the trainable weights' masters, gradients and optimiser states.

        accelerate keeps trainable shards in fp32 under mixed precision, and PEFT its adapters.
        """
        raised = (self.sharded and self.mixed is not None) or self.lora is not None
        return torch.float32 if raised else self.weights

    @property
    def states(self) -> int:
        """Bytes of optimiser states a trainable parameter."""
        for name, size in _STATES.items():
            if name in self.optimizer:
                return size
        return 2 * self.trained.itemsize

    @property
    def keeps_reference(self) -> bool:
        """Whether a second, frozen model is held while training."""
        return self.runs_reference and self.own_reference

    @property
    def runs_reference(self) -> bool:
        """Whether every batch goes through a reference."""
        return self.needs_reference and not (self.precomputed or self.cached_hidden)


def parse_bytes(text: str | int) -> int:
    """Bytes of "80GB" (10⁹ each), "64GiB" (2³⁰ each) or a plain number.

    Raises:
        ConfigError: neither, or less than any device has.
    """
    found = re.fullmatch(r"\s*([0-9.]+)\s*([a-zA-Z]*)\s*", str(text))
    unit = found[2].upper() if found else "?"
    if found is None or unit not in _UNITS or found[1].count(".") > 1 or found[1] == ".":
        raise ConfigError(f"gpu_memory is {text!r}; give a size such as 80GB or 64GiB.")
    if (size := round(float(found[1]) * _UNITS[unit])) <= 0:
        raise ConfigError(f"gpu_memory is {text!r}; it must be more than nothing.")
    if size < _UNITS["MB"]:
        meant = f"Did you mean {found[1]}GB?" if not found[2] else "Give a size such as 80GB."
        raise ConfigError(f"gpu_memory is {text!r}, which is {size:,} bytes. {meant}")
    return size


def read_setting(
    options: Any,
    *,
    gpus: int | None = None,
    launcher: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> Setting:
    """The setting of a run.

    Args:
        options: of `prefkit.train.options.make_options`.
        gpus: processes; None = the launcher's, or 1.
        launcher: of `prefkit.plan.inputs.launcher.read_launcher`.
        dtype: the dtype in the model's own config, for `dtype: auto`.

    Raises:
        ConfigError: see `zero_stage`.
    """
    script, config, given = options
    launcher = launcher or {}
    count = gpus or launcher.get("num_processes") or 1
    fsdp = _fsdp(config, launcher)
    objective = config.build_objective()
    checkpointing, offload = _checkpointing(config, fsdp)
    lora = _lora(script)
    linear, fused = objective.linear is not None, config.head_backend != "reference"
    return Setting(
        method=config.method,
        needs_reference=objective.needs_reference,
        needs_kl=objective.needs_kl,
        needs_groups=objective.needs_groups,
        one_pass=linear and fused,
        one_pass_by_token=fused and (linear or not objective.needs_kl),
        precomputed=config.precompute_ref_log_probs,
        cached_hidden=bool(getattr(config, "precompute_ref_hidden", False)),
        own_reference=lora is None or script.ref_model is not None,
        lora=lora,
        weights=DTYPES.get(script.dtype) or dtype or torch.float32,
        mixed=_mixed(config, launcher),
        checkpointing=checkpointing,
        offload=offload,
        attention=script.attn_implementation,
        dropout=not config.disable_dropout,
        layout=config.layout,
        tokens_per_batch=config.tokens_per_batch,
        group_by=config.group_by,
        pairs=config.per_device_train_batch_size,
        pad_to=config.pad_to_multiple_of or 1,
        seed=config.seed if config.data_seed is None else config.data_seed,
        accumulation=config.gradient_accumulation_steps,
        gpus=count,
        sequence_parallel=config.sequence_parallel_size,
        sharding=_sharding(config, launcher, fsdp, count),
        offload_params=_offloads_params(fsdp),
        on_cpu=bool(given.get("use_cpu")),
        memory_budget=config.memory_budget,
        passes=config.head_passes,
        optimizer=str(getattr(config.optim, "value", config.optim)),
    )


def _lora(script: Any) -> Lora | None:
    if script.adapter != "lora":
        return None
    return Lora(
        script.lora_r,
        script.lora_alpha,
        script.lora_dropout,
        script.lora_target_modules,
        script.lora_target_parameters,
        script.use_dora,
    )


def _offloads_params(fsdp: Mapping[str, Any] | None) -> bool:
    return any(_true((fsdp or {}).get(key)) for key in ("offload_params", "cpu_offload"))


def _true(value: Any) -> bool:
    return str(value).lower() in ("1", "true", "yes")


def _mixed(config: Any, launcher: Mapping[str, Any]) -> torch.dtype | None:
    """The options win over the launcher: the Trainer hands its own to accelerate."""
    named = "bf16" if config.bf16 else "fp16" if config.fp16 else launcher.get("mixed_precision")
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(named or "no")


def _fsdp(config: Any, launcher: Mapping[str, Any]) -> dict[str, Any] | None:
    """FSDP's settings, from the options or the launcher; None without FSDP."""
    if config.fsdp:
        given = config.fsdp_config if isinstance(config.fsdp_config, dict) else {}
        return {str(key).removeprefix("fsdp_"): value for key, value in given.items()} or {"on": 1}
    return launcher.get("fsdp")


def _checkpointing(config: Any, fsdp: Mapping[str, Any] | None) -> tuple[bool, bool]:
    names = ("activation_checkpointing", "gradient_checkpointing")
    if any(getattr(config, name, None) for name in names):
        options = (
            next((x for n in names if (x := getattr(config, f"{n}_kwargs", None))), None) or {}
        )
        return True, bool(isinstance(options, dict) and options.get("offload"))
    fsdp = fsdp or {}
    return tuple(  # type: ignore[return-value]
        _true(fsdp.get(name))
        for name in ("activation_checkpointing", "activation_checkpointing_offload")
    )


def _sharding(
    config: Any, launcher: Mapping[str, Any], fsdp: Mapping[str, Any] | None, gpus: int
) -> Sharding:
    if fsdp:
        return "fsdp2"
    stage = zero_stage(config.deepspeed) if config.deepspeed else launcher.get("zero_stage")
    if stage == 3:
        return "zero3"
    return "none" if gpus == 1 else "ddp"
