"""The model that trains, checked and with its adapter, and its tokenizer."""

import copy
import logging
from typing import Any

import torch

from prefkit.errors import ConfigError, ModelError
from prefkit.model.adapter_targets import ALL_LINEAR, check_names, fitted
from prefkit.model.causal import check_causal
from prefkit.model.evaluating import check_dtypes
from prefkit.model.head.fused import is_peft, unwrap
from prefkit.model.loading import load_tokenizer
from prefkit.train.checks.options import check_precision
from prefkit.train.checks.sharding import asks_for_fsdp, check_model
from prefkit.train.models.dropout import disable_dropout
from prefkit.train.models.loading import load_named, name_of
from prefkit.train.models.quantised import keep_gradients, refuse_purely_quantised

logger = logging.getLogger(__name__)


def load_policy(model: Any, tokenizer: Any, args: Any, keywords: dict[str, Any]) -> tuple[Any, Any]:
    """The model, loaded where it is only named, and its tokenizer with a padding token.

    Args:
        model: a causal LM, or the name or folder of one or of an adapter, which goes on training.
        tokenizer: the tokenizer, or None for the model's own.
        args: the run's options.
        keywords: of `keywords_of`.

    Raises:
        ConfigError, ModelError: no model, or no tokenizer.
    """
    name = model if isinstance(model, str) else name_of(model)
    if isinstance(model, str):
        model = load_named(model, args, keywords, trainable=True)
    if tokenizer is None and not name:
        raise ConfigError(
            "The model was not loaded from a folder or the Hub, so its tokenizer is not known. Give"
            " it as processing_class."
        )
    own = {key: keywords.get(key) for key in ("revision", "trust_remote_code")}
    found = tokenizer or load_tokenizer(name, "Give one as processing_class.", **own)
    return model, with_padding(found, given=tokenizer is not None)


def with_padding(tokenizer: Any, given: bool) -> Any:
    """The tokenizer with a padding token: where the user's own has none, a copy of it.

    Args:
        tokenizer: of transformers.
        given: whether it is the user's object, which stays as it is.
    """
    if tokenizer.pad_token_id is not None:
        return tokenizer
    tokenizer = copy.deepcopy(tokenizer) if given else tokenizer
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def prepare_policy(
    model: Any, tokenizer: Any, peft_config: Any, args: Any, keywords: dict[str, Any]
) -> tuple[Any, Any]:
    """The model that is trained, checked and with its adapter, and its tokenizer.

    Args:
        model, tokenizer, keywords: as in `load_policy`.
        peft_config: of an adapter to wrap the model in, or None.
        args: the run's options.

    Raises:
        ModelError, ConfigError: a model that cannot be trained so; see the functions called.
    """
    policy, tokenizer = load_policy(model, tokenizer, args, keywords)
    keep_gradients(policy)
    if args.disable_dropout:
        disable_dropout(policy)
    check_model(policy, args)
    check_dtypes(unwrap(policy), autocast=args.bf16 or args.fp16)
    check_causal(policy)
    policy = apply_peft(policy, peft_config, args)
    refuse_purely_quantised(policy)
    check_precision(policy, raised=asks_for_fsdp(args) and (args.bf16 or args.fp16))
    return policy, tokenizer


def apply_peft(model: Any, peft_config: Any, args: Any) -> Any:
    """Wraps the model in an adapter where one is asked for, and checks the adapter it has.

    Raises:
        ConfigError: peft is not installed or refuses, or there is an adapter already.
        ModelError: target modules that no adapter can change; nothing that trains.
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
                " (prefkit merge), or leave peft_config out: then the one it has goes on training."
            )
        torch.manual_seed(args.seed)  # the adapter's random half, the same at every start
        check_names(peft_config, model)
        try:
            peft_config, left_out = fitted(peft_config, model)
            for words in left_out:
                logger.warning("The adapter leaves out %s.", words)
            revision = (args.model_init_kwargs or {}).get("revision")
            model = get_peft_model(model, peft_config, revision=revision)
        except ModelError:
            raise
        except ValueError as error:
            said = str(error).strip().rstrip(".")
            raise ConfigError(
                f"The adapter cannot be added: {said}. target_modules='{ALL_LINEAR}' takes every "
                "linear layer that can be adapted."
            ) from error
    if is_peft(model) and (
        args.gradient_checkpointing or getattr(args, "activation_checkpointing", None)
    ):
        model.enable_input_require_grads()  # else nothing in a checkpointed block needs a gradient
    _refuse_reentrant(model, args)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ModelError(
            "No parameter of the model is trainable. Load a PEFT model with is_trainable=True, or "
            "call requires_grad_(True) on what is to be trained."
        )
    return model


def _refuse_reentrant(model: Any, args: Any) -> None:
    """Layers that read an earlier one's keys get wrong gradients, with and without prefkit."""
    names = ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs")
    name = next((n for n in names if (getattr(args, n, None) or {}).get("use_reentrant")), None)
    owner: Any = unwrap(model)
    if name and getattr(owner.config.get_text_config(), "num_kv_shared_layers", None):
        raise ConfigError(
            f"{name} has use_reentrant, under which layers of {type(owner).__name__} that "
            "share keys and values get wrong gradients. Leave use_reentrant out."
        )
