"""What the trainer needs before the first step: the adapter, the reference, the datasets."""

import copy
import hashlib
import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefkit.data.dataset import PairDataset, prepare_pairs
from prefkit.data.formats.detect import ReadOptions
from prefkit.data.sources.iterable import stream_of
from prefkit.data.streamed.prepare import stream_pairs
from prefkit.data.streamed.rows import StreamedRows
from prefkit.data.text.render import TokenizeOptions
from prefkit.errors import ConfigError, ModelError
from prefkit.loss.objective import Objective
from prefkit.model.fsdp_units import copy_without_weights, weights_elsewhere
from prefkit.model.head.fused import install, unwrap
from prefkit.model.reference.logp_cache import fingerprint_model
from prefkit.model.reference.policy import (
    Reference,
    check_adapter,
    check_tokenizers,
    check_transforms,
    check_vocabularies,
)
from prefkit.train.checks.options import check_precision
from prefkit.train.checks.sharding import asks_for_fsdp, check_model
from prefkit.train.config import PreferenceConfig
from prefkit.train.rows.datasets import CachedDataset
from prefkit.train.rows.streaming import refuse_eval_stream
from prefkit.train.rows.templates import with_padding
from prefkit.train.sharding.fsdp2 import loading_whole

logger = logging.getLogger(__name__)


def load_policy(model: Any, tokenizer: Any, args: Any) -> tuple[Any, Any]:
    """The model, loaded in float32 where it is only named, and its tokenizer with a padding token.

    Args:
        model: a causal LM, or the name or folder of one.
        tokenizer: the tokenizer, or None for the model's own.
        args: the run's options.
    """
    if isinstance(model, str):
        with loading_whole(args):
            model = AutoModelForCausalLM.from_pretrained(
                model, dtype=torch.float32, trust_remote_code=False
            )
    found = tokenizer or AutoTokenizer.from_pretrained(
        model.config.name_or_path, trust_remote_code=False
    )
    return model, with_padding(found, given=tokenizer is not None)


def prepare_policy(model: Any, tokenizer: Any, peft_config: Any, args: Any) -> tuple[Any, Any]:
    """The model that is trained, checked and with its adapter, and its tokenizer.

    Args:
        model, tokenizer: as in `load_policy`.
        peft_config: of an adapter to wrap the model in, or None.
        args: the run's options.

    Raises:
        ModelError, ConfigError: a model that cannot be trained so; see the functions called.
    """
    policy, tokenizer = load_policy(model, tokenizer, args)
    if args.disable_dropout:
        disable_dropout(policy)
    check_model(policy, args)
    policy = apply_peft(policy, peft_config, args)
    check_precision(policy, raised=asks_for_fsdp(args) and (args.bf16 or args.fp16))
    return policy, tokenizer


def tokenize_options(args: Any, text_config: Any) -> TokenizeOptions:
    """How a run's options say that rows become tokens.

    Args:
        args: has the fields of `prefkit.train.fields.TextFields`.
        text_config: of the model: how long a sequence it can read, where `max_length` is None.
    """
    return TokenizeOptions.of(args, getattr(text_config, "max_position_embeddings", None))


def disable_dropout(model: nn.Module) -> None:
    """Sets every dropout of the model to zero, an adapter's own `lora_dropout` excepted.

    All kinds: Dropout modules, and the rates (attention_dropout, hidden_dropout, layerdrop, …) that
    functions read from the module that holds them. Falcon and Persimmon read a rate from the
    config, which is left as it is because it is saved with the model; its default is 0.
    """
    for name, module in model.named_modules():
        if "lora_dropout" in name:
            continue
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for rate, value in vars(module).items():
            if "drop" in rate and isinstance(value, float):
                setattr(module, rate, 0.0)


def apply_peft(model: Any, peft_config: Any, args: Any) -> Any:
    """Wraps the model in an adapter where one is asked for, and checks the adapter it has.

    Raises:
        ConfigError: peft is not installed, or there is an adapter already.
    """
    if peft_config is not None:
        try:
            from peft import get_peft_model
        except ImportError as error:
            raise ConfigError(
                "peft_config needs the package peft. Install it with: pip install 'prefkit[peft]'"
            ) from error
        if is_peft(model):
            raise ConfigError(
                "The model has an adapter already and peft_config asks for another. Merge the first"
                " (merge_and_unload), or leave peft_config out."
            )
        torch.manual_seed(args.seed)  # the adapter's random half, the same at every start
        try:
            model = get_peft_model(model, peft_config)
        except ValueError as error:
            raise ConfigError(f"The adapter cannot be added: {error}") from error
    if is_peft(model) and (
        args.gradient_checkpointing or getattr(args, "activation_checkpointing", None)
    ):
        model.enable_input_require_grads()  # else nothing in a checkpointed block needs a gradient
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ModelError(
            "No parameter of the model is trainable. Load a PEFT model with is_trainable=True, or "
            "call requires_grad_(True) on what is to be trained."
        )
    return model


def is_peft(model: Any) -> bool:
    """Whether the model is a PEFT model."""
    return hasattr(model, "disable_adapter") and hasattr(model, "peft_config")


def make_reference(
    model: Any, ref_model: Any, objective: Objective, tokenizer: Any, args: PreferenceConfig
) -> Reference | None:
    """The reference that the objective reads, or None where it reads none.

    Args:
        model: the policy, its adapter applied, its head not yet fused.
        ref_model: the user's reference or None.
        objective: decides whether a reference, and whether its whole distribution, is needed.
        tokenizer: the policy's tokenizer.
        args: `precompute_ref_log_probs` and `disable_dropout` are read.

    Raises:
        ConfigError: a reference for an objective that reads none.
        ModelError: a reference that does not fit the policy.
    """
    if not objective.needs_reference:
        if ref_model is not None:
            raise ConfigError(
                f"ref_model is given, but method '{args.method}' as configured reads no reference. "
                "Leave ref_model out."
            )
        return None
    if ref_model is None and is_peft(model):
        check_adapter(model)
        return Reference(model, install(model), adapter_owner=model)
    if ref_model is None and args.precomputes_reference:
        return Reference(model, install(model))  # before the first step the policy is the reference
    frozen = ref_model
    if frozen is None:
        frozen = copy_without_weights(model) if weights_elsewhere() else copy.deepcopy(model)
    frozen.requires_grad_(False).eval()
    if args.disable_dropout:
        disable_dropout(frozen)
    reference = Reference(frozen, install(frozen))
    policy = install(model)
    check_vocabularies(policy, reference.head, len(tokenizer))
    if objective.needs_kl:
        check_transforms(policy, reference.head)
    if ref_model is not None:
        _check_ref_tokenizer(model, ref_model, tokenizer)
    return reference


def _check_ref_tokenizer(model: Any, ref_model: Any, tokenizer: Any) -> None:
    """Compares tokenizers where the reference's lies on this machine."""
    from transformers import AutoTokenizer

    name = getattr(unwrap(ref_model).config, "name_or_path", "")
    if not name or name in (unwrap(model).config.name_or_path, tokenizer.name_or_path):  # type: ignore[union-attr]
        return
    try:
        theirs = AutoTokenizer.from_pretrained(name, local_files_only=True)
    except (OSError, ValueError):
        return  # saved without a tokenizer: the vocabulary sizes have been compared
    check_tokenizers(tokenizer, theirs)


def reference_fingerprint(reference: Reference | None, args: PreferenceConfig) -> str | None:
    """A hash of the reference and of the precision it runs in; None without a reference."""
    if reference is None or weights_elsewhere():  # then the first process tells it
        return None
    model = reference.model
    base = fingerprint_model(unwrap(model), without_adapter=reference.adapter_owner is not None)
    precision = "bf16" if args.bf16 else "fp16" if args.fp16 else "weights"
    return hashlib.sha256(f"{base}:{precision}".encode()).hexdigest()


def prepare_dataset(
    rows: Any,
    tokenizer: Any,
    args: PreferenceConfig,
    model_config: Any,
    name: str,
    *,
    split: str = "train",
) -> Dataset:
    """Rows of any format as tokenised pairs; prepared datasets pass through, streams stay streams.

    Args:
        rows: whatever `prefkit.data.prepare_pairs` reads, or a Dataset of tokenised pairs.
        model_config: the model's config: its longest sequence and size of vocabulary count.
        name: "train", "eval" or "eval_NAME"; names the file of skipped rows.

    Raises:
        RowError, PrefkitError: see `prepare_pairs`.
    """
    if isinstance(rows, PairDataset | CachedDataset | StreamedRows):
        return rows
    text_config = model_config.get_text_config()
    options = tokenize_options(args, text_config)
    vocab_size = text_config.vocab_size
    reading = ReadOptions(
        level=args.resolved_level,
        mask_tool_output=args.mask_tool_output,
        format=args.format,
        block_style=args.block_style,
        columns={} if args.columns is None else args.columns,  # type: ignore[arg-type]
        on_bad_row=args.on_bad_row,
        skipped_file=Path(args.output_dir or ".") / f"skipped_rows_{name}.jsonl",
    )
    if (stream := stream_of(rows, split)) is not None:
        if name != "train":
            refuse_eval_stream(stream, name)
        part = (args.process_index, args.world_size)
        return stream_pairs(stream, tokenizer, options, reading, vocab_size=vocab_size, part=part)
    dataset = prepare_pairs(rows, tokenizer, options, reading, split=split, vocab_size=vocab_size)
    if not len(dataset):
        raise ConfigError(
            f"The {name} data hold no usable pair. Look at the rows that were skipped."
        )
    if args.method == "cdpo" and not dataset.report.weighted_rows:
        logger.warning(
            "method cdpo: no row of the %s data carries weights, so this is plain DPO. Give "
            "rejected_weights, rejected_spans or a scored file (docs/data.md).",
            name,
        )
    return dataset
