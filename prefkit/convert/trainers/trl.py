"""TRL: `trl dpo --config FILE`, that is ScriptArguments, DPOConfig, ModelConfig and mixtures."""

from collections.abc import Mapping
from typing import Any

from prefkit.convert.loss import LOSS_HINT
from prefkit.convert.own_keys import OWN, write_own
from prefkit.convert.rules import By, Left, Refused, Rule, Same, To, Trainer, each
from prefkit.convert.trainers import trl_groups as groups
from prefkit.convert.trainers.transformers_names import TRANSFORMERS

_ROWS_OF_TOKENS = "rows are read without padding wherever the model allows it"
_ONE_PROCESS = "rows are read in one process"
_ENGINE = "prefkit computes no logits that this could change"
_PROMPT_CUT = "prefkit never cuts prompts"
_PROMPTS = "Remove it where no prompt is longer; else use max_length, and too_long: skip."
_LENGTHS = "Use max_length, which bounds prompt and response together, and too_long."
_LORA_RULE = By(groups.adapter, "Use adapter: lora, and the options lora_….")
_DATASET = By(groups.dataset, "Use train_data (NAME:CONFIG of a Hub dataset), train_split.")
_MIXTURE = Refused(
    "alignment-handbook mixes datasets before TRL sees them",
    "Name them as datasets: [{path: NAME, name: CONFIG, split: SPLIT}].",
)
_SYNC = By(groups.synchronisation, Same.hint)
RULES: dict[str, Rule] = {
    **TRANSFORMERS,
    # -- model --------------------------------------------------------------------------------
    "model_name_or_path": To("model"),
    "model_revision": To("revision", off=("main", None)),
    "torch_dtype": To("dtype"),
    "dtype": To("dtype", {None: "auto"}),
    "attn_implementation": To("attn_implementation"),
    **each(By(groups.precision, "Use bf16 or fp16."), "bf16 fp16"),
    "model_init_kwargs": By(groups.model_options, "Use dtype, attn_implementation."),
    "trust_remote_code": Left("set it yourself where you have read the code that it runs"),
    "ref_model_init_kwargs": Refused(
        "the reference is loaded as the model is", "Use ref_model to name another."
    ),
    **each(_LORA_RULE, " ".join(("use_peft", *groups.LORA, "lora_target_modules"))),
    "lora_target_parameters": Same(),
    "lora_task_type": Refused(
        "prefkit trains causal language models", "Remove it.", ("CAUSAL_LM", None)
    ),
    "bnb_4bit_quant_storage": Refused("it serves FSDP, under which quantised models are refused"),
    "model_adapter_name": Refused("an adapter has one name here"),
    "ref_adapter_name": Refused("the reference is the model with its adapter off"),
    "is_encoder_decoder": Refused("prefkit trains causal language models"),
    "base_model_attribute_name": Left("the model tells where its body is"),
    # -- data ---------------------------------------------------------------------------------
    **each(
        _DATASET,
        "dataset_name dataset_config dataset_train_split dataset_test_split datasets streaming "
        "test_split_size",
    ),
    "dataset_streaming": Refused(
        "prefkit train reads rows that are in memory, shuffled",
        "Remove it, or train from Python, where train_dataset may be a stream.",
    ),
    "dataset_num_proc": Left(_ONE_PROCESS),
    "tools": Refused("tools are a column of the rows"),
    "max_length": By(groups.length, _LENGTHS),
    "truncation_mode": By(groups.length, "Use too_long."),
    "max_prompt_length": Refused(_PROMPT_CUT, _PROMPTS, (None,)),
    "max_completion_length": Refused("prefkit bounds prompt and response together", _LENGTHS),
    "max_target_length": Refused("prefkit trains causal language models", _LENGTHS),
    "padding_free": Left(_ROWS_OF_TOKENS),
    "pad_to_multiple_of": To("pad_to_multiple_of", {"auto": None}),
    **each(Left("padding is no part of the loss"), "pad_token padding_value label_pad_token_id"),
    # -- loss ---------------------------------------------------------------------------------
    **each(By(groups.losses, LOSS_HINT), "loss_type loss_weights label_smoothing discopop_tau"),
    "beta": Same(),
    **each(By(groups.divergence, Same.hint), "f_divergence_type f_alpha_divergence_coef"),
    "ld_alpha": Same(),
    "use_weighting": Same(off=(False, None)),
    "rpo_alpha": By(
        groups.rpo,
        "Use nll_weight, a mean over the tokens of each pair's chosen response; or, for TRL's mean "
        "over the batch's tokens, loss_type: [sigmoid, sft] with loss_weights.",
    ),
    "reference_free": To("reference_free"),
    "force_use_ref_model": Left("ref_model names a reference beside an adapter"),
    # -- reference and computation ------------------------------------------------------------
    **each(_SYNC, "sync_ref_model ref_model_mixup_alpha ref_model_sync_steps"),
    **each(
        Same(),
        "disable_dropout router_aux_loss_coef precompute_ref_log_probs precompute_ref_batch_size",
    ),
    "activation_offloading": Left("it saves memory alone, and prefkit does not offload"),
    **each(Left(_ENGINE), "use_logits_to_keep use_num_logits_to_keep"),
    "use_liger_loss": Left("the loss is fused already"),
    "generate_during_eval": Left("nothing is generated; prefkit evaluate does that"),
    "ignore_bias_buffers": Left("buffers of a model do not change what it learns"),
    # -- of alignment-handbook, around TRL --------------------------------------------------------
    **each(_MIXTURE, "dataset_mixture dataset_mixer dataset_splits dataset_configs"),
    "hub_model_revision": To("hub_revision"),
    "chat_template": To("chat_template"),
    "env": Left("a config sets no variables: export them before prefkit train"),
    "config": Left("it named the file itself"),
}
DEFAULTS: Mapping[str, Any] = {
    "dtype": "float32",
    "bf16": None,
    "fp16": False,
    "gradient_checkpointing": True,
    "per_device_train_batch_size": 8,
    "learning_rate": 1e-6,
    "beta": 0.1,
    "max_length": 1024,
    "truncation_mode": "keep_start",
    "loss_type": "sigmoid",
    "loss_weights": None,
    "label_smoothing": 0.0,
    "discopop_tau": 0.05,
    "f_divergence_type": "reverse_kl",
    "f_alpha_divergence_coef": 0.5,
    "sync_ref_model": False,
    "ref_model_mixup_alpha": 0.6,
    "ref_model_sync_steps": 512,
    "use_peft": False,
    "lora_r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.05,
    "lora_target_modules": None,
    "lora_modules_to_save": None,
    "use_rslora": False,
    "use_dora": False,
    "load_in_4bit": False,
    "load_in_8bit": False,
    "bnb_4bit_quant_type": "nf4",
    "use_bnb_nested_quant": False,
    "dataset_name": None,
    "dataset_config": None,
    "dataset_train_split": "train",
    "dataset_test_split": "test",
    "datasets": [],
    "streaming": False,
    "test_split_size": None,
}
TRL = Trainer(
    name="trl",
    title="TRL",
    version="1.16",
    rules=RULES,
    defaults=DEFAULTS,
    needs=("model_name_or_path",),
    inherits=True,
    families=each(By(write_own, "It is an option of prefkit.integrations.trl."), OWN),
)
# Arguments of `trl.DPOTrainer`, now or once, that `PreferenceTrainer` does not have.
ARGUMENTS = {
    "tokenizer": "Use processing_class.",
    "model_init_kwargs": "Use PreferenceConfig(model_init_kwargs=…).",
    "ref_model_init_kwargs": "Load the reference yourself, and pass it as ref_model.",
    "preprocess_logits_for_metrics": "There are no logits: prefkit never forms them.",
    "optimizer_cls_and_kwargs": "Use optimizers, or optim in PreferenceConfig.",
    "is_encoder_decoder": "Remove it: prefkit trains causal language models.",
    "padding_value": "Remove it: padding is no part of the loss.",
    "label_pad_token_id": "Remove it: padding is no part of the loss.",
}
