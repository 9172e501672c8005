"""Sharding a run over processes: FSDP2 through accelerate's own options, with what it leaves open.

The options are the Trainer's and accelerate's (`fsdp`, `fsdp_config`, the FSDP_* variables that
`accelerate launch` sets); the policy is sharded by accelerate when training begins. Added here:

- the frozen reference, sharded per layer as the policy is (only at its root it would be gathered
  whole in every forward);
- FSDP2 on a CPU. accelerate chooses it only where it sees an accelerator and falls back to
  replicas (DDP) without a word; its own functions run on a CPU just as well;
- gradients reduced in fp32 and results that keep their precision under bf16: accelerate's policy
  rounds both to bf16, the loss and its metrics included.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from accelerate.state import PartialState
from accelerate.utils import (
    DistributedType,
    FullyShardedDataParallelPlugin,
    broadcast_object_list,
)
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config
from transformers.trainer_utils import EvalLoopOutput

from prefkit.errors import ConfigError
from prefkit.model.fsdp_units import release
from prefkit.model.head.fused import Head
from prefkit.model.reference.policy import Reference
from prefkit.train.checks.sharding import asks_for_fsdp
from prefkit.train.sharding.even_evaluation import EvenDataset


class ShardedTrainer(Trainer):
    """A Trainer whose FSDP2 is exact, and is FSDP2 on a CPU as well.

    The subclass sets `head`, `reference` and `_reference_id` before `Trainer` sets itself up.
    """

    head: Head
    reference: Reference | None
    _reference_id: str | None = None

    def create_accelerator_and_postprocess(self) -> None:
        """As Trainer does; FSDP2 that was asked for is what comes out.

        Raises:
            ConfigError: accelerate did not take up the FSDP settings.
        """
        if asks_for_fsdp(self.args):
            _reduce_every_batch(self.args.accelerator_config)
        super().create_accelerator_and_postprocess()
        if not asks_for_fsdp(self.args):
            return
        if self.accelerator.distributed_type is DistributedType.MULTI_CPU:
            self._shard_on_cpu()
        if not self.accelerator.is_fsdp2:
            kind = self.accelerator.distributed_type.value
            raise ConfigError(
                f"fsdp: accelerate set up {kind} instead of FSDP2, which would train a whole copy "
                "of the model in each process. Start one process a device with torchrun or "
                "accelerate launch, or leave fsdp out."
            )
        _keep_precision(self.accelerator.state.fsdp_plugin)
        if self.accelerator.state.fsdp_plugin.cpu_ram_efficient_loading:
            self._believe_the_first_process()

    def _believe_the_first_process(self) -> None:
        """Takes over what only a process that has the weights could find out of them."""
        heads = [self.head] if self.reference is None else [self.head, self.reference.head]
        found: list[Any] = [self._reference_id, [head.transform for head in heads]]
        broadcast_object_list(found, from_process=0)
        self._reference_id, transforms = found
        self.head = replace(self.head, transform=transforms[0])
        if self.reference is not None:
            self.reference.head = replace(self.reference.head, transform=transforms[1])

    def _shard_on_cpu(self) -> None:
        """The state that accelerate reaches by itself where it sees an accelerator."""
        given = self.args.fsdp_plugin_args or {}  # else the FSDP_* variables, as accelerate reads
        plugin = FullyShardedDataParallelPlugin(**given)
        state = self.accelerator.state
        if state.mixed_precision != "no":
            plugin.set_mixed_precision(state.mixed_precision)
        state.fsdp_plugin = plugin
        state.distributed_type = DistributedType.FSDP
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        self.is_fsdp_enabled = True

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """As in Trainer, with every item counted once however many processes share them."""
        key = eval_dataset if isinstance(eval_dataset, str) else None
        given = self.eval_dataset if eval_dataset is None else eval_dataset
        dataset: Any = self.eval_dataset[key] if key is not None else given  # type: ignore
        if dataset is None or isinstance(dataset, dict):
            return super().get_eval_dataloader(eval_dataset)  # says what is wrong
        even = EvenDataset(dataset, self.args.eval_batch_size * self.args.world_size)
        if key is None:
            return super().get_eval_dataloader(even)
        before = self.eval_dataset  # by name, because Trainer keeps persistent loaders by name
        self.eval_dataset = {**before, key: even}  # type: ignore[dict-item]
        try:
            return super().get_eval_dataloader(key)
        finally:
            self.eval_dataset = before

    def evaluation_loop(self, dataloader: DataLoader, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """As in Trainer; a model that no training has sharded yet is sharded first."""
        self.prepare_policy()
        output = super().evaluation_loop(dataloader, *args, **kwargs)
        model: Any = self.model
        release(model)  # the last layers stay gathered for a backward that does not come
        real = getattr(dataloader.dataset, "real", output.num_samples)
        return output._replace(num_samples=real)

    @property
    def is_fsdp2(self) -> bool:
        """Whether the policy is, or will be, sharded by FSDP2."""
        return bool(self.is_fsdp_enabled and self.accelerator.is_fsdp2)

    def shard_reference(self, model: nn.Module) -> nn.Module:
        """The frozen reference, ready to run beside the policy: sharded per layer as that is."""
        if self.accelerator.distributed_type is DistributedType.DEEPSPEED:
            return _zero_reference(model, self.accelerator.state.deepspeed_plugin)
        if not self.is_fsdp2:
            return self.accelerator.prepare_model(model, evaluation_mode=True)
        with _own_wrapping(self.accelerator):
            return fsdp2_prepare_model(self.accelerator, model)

    def prepare_policy(self) -> None:
        """Shards the policy before training begins: for an evaluation, or to load weights.

        accelerate shards a model only together with its optimiser; training goes on with both.
        """
        if not self.is_fsdp2 or isinstance(self.model, FSDPModule):
            return
        self.create_optimizer()
        self.model, self.optimizer = self.accelerator.prepare(self.model, self.optimizer)
        self.model_wrapped = self.model

    def whole_weights(self) -> dict[str, Tensor]:
        """The sharded policy's weights, whole, on the CPU of the first process; {} on the others.

        Of an adapter only what trains. Every process must call it.
        """
        options = StateDictOptions(
            full_state_dict=True,
            cpu_offload=True,
            ignore_frozen_params=hasattr(self.model, "peft_config"),
        )
        model: Any = self.model
        return get_model_state_dict(model, options=options)  # type: ignore[return-value]


def _keep_precision(plugin: FullyShardedDataParallelPlugin) -> None:
    """bf16 for the matrices, fp32 for sums of gradients over processes and for results.

    The model's forward returns the loss and its metrics here: rounding the model's output, as
    accelerate asks for, would round those.
    """
    policy = plugin.mixed_precision_policy
    if policy is not None:
        plugin.mixed_precision_policy = replace(
            policy, reduce_dtype=torch.float32, output_dtype=None
        )


def _reduce_every_batch(config: Any) -> None:
    """Gradients are sharded after every batch of an accumulation window, unless told otherwise.

    Kept whole until the last one, as accelerate does to save communication, they would take the
    memory of a whole model in every process.
    """
    given = config.gradient_accumulation_kwargs or {}
    config.gradient_accumulation_kwargs = {"sync_each_batch": True, **given}


def _zero_reference(model: nn.Module, plugin: Any) -> nn.Module:
    """The frozen reference in a DeepSpeed engine of its own, partitioned under ZeRO-3."""
    import deepspeed

    policy = plugin.deepspeed_config
    zero = policy.get("zero_optimization", {})
    config: dict[str, Any] = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {}}
    if zero.get("stage") == 3:
        taken = ("stage", "offload_param", "stage3_", "sub_group_size")
        config["zero_optimization"] = {
            key: value for key, value in zero.items() if key.startswith(taken) and value != "auto"
        }
    config |= {key: policy[key] for key in ("bf16", "fp16") if key in policy}
    engine, *_ = deepspeed.initialize(model=model, config=config)
    engine.eval()  # returns nothing
    return engine


@contextmanager
def loading_whole(args: Any) -> Iterator[None]:
    """Models loaded inside the block are whole in every process, under ZeRO-3 as well.

    Partitioned while they are loaded, as transformers does as soon as the options ask for ZeRO-3,
    neither the head nor an adapter could be proved, nor the reference be copied.
    """
    config = getattr(args, "hf_deepspeed_config", None)
    if config is None:
        yield
        return
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        set_hf_deepspeed_config(config)


@contextmanager
def _own_wrapping(accelerator: Any) -> Iterator[None]:
    """A copy of the plugin inside the block: it settles which layers to wrap at its first model."""
    before = accelerator.state.fsdp_plugin
    accelerator.state.fsdp_plugin = copy.copy(before)
    try:
        yield
    finally:
        accelerator.state.fsdp_plugin = before
