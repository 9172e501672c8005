"""LLaMA-Factory: `llamafactory-cli train FILE` with `stage: dpo`."""

from collections.abc import Mapping
from typing import Any

from prefkit.convert.rules import By, Left, Refused, Rule, To, Trainer, each
from prefkit.convert.trainers import llamafactory_groups as groups
from prefkit.convert.trainers.llamafactory_data import write_datasets
from prefkit.convert.trainers.transformers_names import TRANSFORMERS

_PACKED = "bitsandbytes packs the weights, if any are packed"
_NO_PACKING = "LLaMA-Factory packs no pairs; prefkit does with tokens_per_batch"
_OTHER_STAGE = "it belongs to another stage"
_SUPERVISED = "it belongs to supervised fine-tuning"
_GENERATES = "no text is generated in a preference run"
_TEXT = "prefkit trains text models"
_ENGINE = "it changes how fast a step is computed, not what it learns"
_OPTIMISER = "prefkit has transformers' optimisers"
_OPTIM = "Use optim; LLaMA-Factory's own optimisers are not there."
_HUB = "the Hub's client reads HF_TOKEN, HF_HOME and the like"
_WHOLE = "a model is loaded whole, by transformers alone"
_LOSS = By(groups.loss, "Use method (dpo, simpo, …) and loss_type (sigmoid, hinge, ipo, …).")
_TRAINING = By(groups.training, "Use adapter: lora, and the options lora_….")
_DATA = By(write_datasets, "Use train_data: the files themselves; columns names their fields.")
_GRADIENTS = By(groups.checkpointing, "Use gradient_checkpointing.")
_VOCABULARY = Refused("prefkit changes no vocabulary", "Save the enlarged model, and train that.")


RULES: dict[str, Rule] = {
    **TRANSFORMERS,
    "stage": By(groups.stage, "prefkit train learns from pairs; leave it out."),
    # -- model --------------------------------------------------------------------------------
    "model_name_or_path": To("model"),
    "model_revision": To("revision", off=("main", None)),
    "trust_remote_code": Left("set it yourself where you have read the code that it runs"),
    "flash_attn": To(
        "attn_implementation",
        {
            "auto": None,
            "disabled": "eager",
            "fa2": "flash_attention_2",
            "fa3": "flash_attention_3",
        },
    ),
    "enable_liger_kernel": To("use_liger_kernel"),
    "moe_aux_loss_coef": By(
        lambda draft: draft.write(
            "moe_aux_loss_coef",
            {"router_aux_loss_coef": 0.0},
            "LLaMA-Factory adds no loss of routers to that of pairs",
        ),
        "Use router_aux_loss_coef.",
    ),
    **each(
        Refused("prefkit trains the model as it is"),
        "shift_attn mixture_of_depths rope_scaling train_from_scratch use_llama_pro use_kt",
    ),
    **each(
        _VOCABULARY,
        "resize_vocab add_tokens add_special_tokens new_special_tokens_config split_special_tokens",
    ),
    "adapter_name_or_path": Refused(
        "its reference is the base model, and prefkit's is the adapter as it begins",
        "Merge it, and train the merged model; ref_model may name the base.",
        (None,),
    ),
    "create_new_adapter": Left("every adapter is a new one"),
    **each(Left(_WHOLE), "adapter_folder low_cpu_mem_usage offload_folder infer_backend"),
    **each(Left(_HUB), "cache_dir hf_hub_token ms_hub_token om_hub_token"),
    **each(Left(_ENGINE), "use_unsloth use_unsloth_gc use_v1_kernels use_reentrant_gc"),
    **each(Left("it changes rounding alone"), "upcast_layernorm upcast_lmhead_output"),
    "use_fast_tokenizer": Left("a fast tokenizer is always used"),
    "init_special_tokens": Left("no tokens are added"),
    **each(Left(_GENERATES), "infer_dtype use_kv_cache print_param_status"),
    "quantization_bit": By(groups.quantised, "Use load_in_4bit or load_in_8bit."),
    "quantization_type": By(groups.quantised, "Use bnb_4bit_quant_type."),
    "double_quantization": By(groups.quantised, "Use use_bnb_nested_quant."),
    "quantization_method": Refused(_PACKED, off=("bnb", None)),
    "quantization_device_map": Refused("the launcher places the model"),
    **each(_GRADIENTS, "disable_gradient_checkpointing gradient_checkpointing"),
    # -- what trains --------------------------------------------------------------------------
    **each(
        _TRAINING,
        "finetuning_type pure_bf16 bf16 fp16 lora_rank lora_alpha lora_dropout lora_target "
        "additional_target use_rslora use_dora",
    ),
    **each(Refused("prefkit's adapters have one learning rate, and begin at 0"), "pissa_init"),
    "loraplus_lr_ratio": Refused("prefkit's adapters have one learning rate"),
    **each(Left("it belongs to an option that is off"), "loraplus_lr_embedding pissa_iter"),
    "pissa_convert": Left("it belongs to pissa_init"),
    **each(
        Left("it belongs to finetuning_type freeze or oft"),
        "freeze_trainable_layers freeze_trainable_modules freeze_extra_modules module_dropout "
        "oft_rank oft_block_size oft_target",
    ),
    "freeze_language_model": Refused(_TEXT),
    **each(Left(_TEXT), "freeze_vision_tower freeze_multi_modal_projector"),
    # -- loss ---------------------------------------------------------------------------------
    **each(_LOSS, "pref_loss pref_beta pref_ftx simpo_gamma dpo_label_smoothing"),
    "pref_bco_weight": By(groups.classifier, "prefkit has no such loss."),
    "ld_alpha": Refused("LLaMA-Factory weighs the policy's tokens, and not the reference's"),
    "ref_model": By(groups.loss, "Use ref_model."),
    "ref_model_adapters": Refused("the reference has no adapter of its own", "Merge it."),
    "ref_model_quantization_bit": Refused("the reference is loaded as the model is"),
    **each(
        Left(_OTHER_STAGE),
        "kto_chosen_weight kto_rejected_weight ppo_buffer_size ppo_epochs ppo_score_norm "
        "ppo_target ppo_whiten_rewards reward_model reward_model_adapters "
        "reward_model_quantization_bit reward_model_type",
    ),
    # -- optimiser ----------------------------------------------------------------------------
    **each(Refused(_OPTIMISER, _OPTIM), "use_galore use_apollo use_badam use_adam_mini use_muon"),
    **each(
        Left("it belongs to an optimiser that is off"),
        "galore_target galore_rank galore_update_interval galore_scale galore_proj_type "
        "galore_layerwise apollo_scale_type apollo_target apollo_rank apollo_update_interval "
        "apollo_scale apollo_proj apollo_proj_type apollo_layerwise apollo_scale_front badam_mode "
        "badam_start_block badam_switch_mode badam_switch_interval badam_update_ratio "
        "badam_mask_mode badam_verbose",
    ),
    "early_stopping_steps": To("early_stopping_patience"),
    "disable_shuffling": To("train_sampling_strategy", {True: "sequential", False: "random"}),
    # -- data ---------------------------------------------------------------------------------
    **each(_DATA, "dataset dataset_dir eval_dataset max_samples template default_system"),
    "cutoff_len": By(
        lambda draft: draft.write(
            "cutoff_len",
            {"max_length": draft["cutoff_len"], "too_long": "truncate_end", "equal": "skip"},
            groups.CUT,
        ),
        "Use max_length, and too_long.",
    ),
    "val_size": Refused(
        "prefkit holds no rows out", "Split the rows yourself, and name both files.", (None, 0)
    ),
    "enable_thinking": By(groups.thinking, 'Use chat_template_kwargs: {"enable_thinking": false}.'),
    "preserve_thinking": Refused("thoughts of earlier turns are the chat template's to keep"),
    "tool_format": Refused("calls of tools are written by the tokenizer's chat template"),
    "tokenized_path": Refused("prefkit tokenises rows itself", "Remove it."),
    "streaming": Refused("prefkit train reads rows that are in memory, shuffled", "Remove it."),
    "mix_strategy": Refused("prefkit reads sources one after the other", off=("concat", None)),
    "interleave_probs": Refused("prefkit reads sources one after the other"),
    "ignore_pad_token_for_loss": Refused("padding is no part of the loss", off=(True, None)),
    "train_on_prompt": Refused("prompts are context"),
    "mask_history": Refused("all of a prompt is context already"),
    **each(Left(_NO_PACKING), "packing neat_packing"),
    **each(
        Left("rows are read in one process, and not kept on a disk"),
        "overwrite_cache preprocessing_batch_size preprocessing_num_workers buffer_size "
        "data_shared_file_system media_dir",
    ),
    "eval_on_each_dataset": Left("rows to evaluate on are put together"),
    # -- no part in a preference run ------------------------------------------------------------
    **each(
        Left(_SUPERVISED),
        "use_dft_loss use_asft_loss asft_alpha use_eaft_loss eaft_alpha compute_accuracy",
    ),
    **each(
        Left(_GENERATES),
        "eval_num_beams do_sample temperature top_p top_k num_beams max_length max_new_tokens "
        "repetition_penalty length_penalty skip_special_tokens vllm_maxlen vllm_gpu_util "
        "vllm_enforce_eager vllm_max_lora_rank vllm_config sglang_maxlen sglang_mem_fraction "
        "sglang_tp_size sglang_config sglang_lora_backend",
    ),
    **each(
        Left("it belongs to llamafactory-cli export"),
        "export_dir export_size export_device export_quantization_bit export_quantization_dataset "
        "export_quantization_nsamples export_quantization_maxlen export_legacy_format "
        "export_hub_model_id",
    ),
    **each(
        Left(_TEXT),
        "image_max_pixels image_min_pixels image_do_pan_and_scan crop_to_patches video_max_pixels "
        "video_min_pixels video_fps video_maxlen use_audio_in_video audio_sampling_rate",
    ),
    **each(
        Refused("prefkit trains by transformers' Trainer"),
        "use_mca use_megatron_bridge use_hyper_parallel fp8",
    ),
    **each(
        Left("it belongs to an engine that is off"),
        "hyper_parallel_args hyper_parallel_cp_size fp8_backend fp8_enable_fsdp_float8_all_gather "
        "kt_cpu_activation kt_weight_path kt_non_expert_weight_path kt_expert_checkpoint_path "
        "kt_use_lora_experts kt_lora_expert_num kt_lora_expert_intermediate_size",
    ),
    **each(
        Left("torchrun or accelerate launch starts several processes"),
        "ray_num_workers ray_init_kwargs master_addr master_port",
    ),
    **each(
        Left("report_to: swanlab sends the log there, and its own variables say how"),
        "use_swanlab swanlab_project swanlab_workspace swanlab_run_name swanlab_mode "
        "swanlab_api_key swanlab_logdir swanlab_lark_webhook_url swanlab_lark_secret",
    ),
    **each(
        Left("it only looks at the run"),
        "plot_loss include_effective_tokens_per_second enable_torch_profiler profiler_output_dir "
        "profiler_wait_steps profiler_warmup_steps profiler_active_steps profiler_repeat "
        "profiler_record_shapes profiler_profile_memory profiler_with_stack profile_modules",
    ),
}
DEFAULTS: Mapping[str, Any] = {
    "stage": "sft",
    "finetuning_type": "lora",
    "pure_bf16": False,
    "bf16": False,
    "fp16": False,
    "lora_rank": 8,
    "lora_alpha": None,
    "lora_dropout": 0.0,
    "lora_target": "all",
    "additional_target": None,
    "use_rslora": False,
    "use_dora": False,
    "quantization_bit": None,
    "quantization_type": "nf4",
    "double_quantization": True,
    "disable_gradient_checkpointing": False,
    "gradient_checkpointing": False,
    "moe_aux_loss_coef": None,
    "pref_loss": "sigmoid",
    "pref_beta": 0.1,
    "pref_ftx": 0.0,
    "ref_model": None,
    "simpo_gamma": 0.5,
    "dpo_label_smoothing": 0.0,
    "learning_rate": 5e-5,
    "per_device_train_batch_size": 8,
    "cutoff_len": 2048,
    "dataset": None,
    "dataset_dir": "data",
    "eval_dataset": None,
    "max_samples": None,
    "template": None,
    "default_system": None,
}
LLAMA_FACTORY = Trainer(
    name="llamafactory",
    title="LLaMA-Factory",
    version="of August 2026",
    rules=RULES,
    defaults=DEFAULTS,
    needs=("stage", "finetuning_type", "model_name_or_path"),
    inherits=True,
)
