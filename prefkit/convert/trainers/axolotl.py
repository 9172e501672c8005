"""axolotl: `axolotl train FILE` with `rl: dpo`, `ipo`, `simpo` or `orpo`."""

from collections.abc import Mapping
from typing import Any

from prefkit.convert.loss import LOSS_HINT
from prefkit.convert.own_keys import write_own
from prefkit.convert.rules import By, Left, Refused, Rule, Same, To, Trainer, each
from prefkit.convert.trainers import axolotl_groups as groups
from prefkit.convert.trainers import axolotl_model as model
from prefkit.convert.trainers.axolotl_data import write_data

_BETA_HINT = "Use beta."
_LOSS = By(groups.loss, "Use method (dpo, simpo, …) and loss_type (sigmoid, ipo, …).")
_DATA = By(write_data, "Use train_data, train_split; columns names the fields of its rows.")
_LENGTHS = By(groups.length, "Use max_length, and too_long.")
_BATCH = By(groups.batch, "Use per_device_train_batch_size and gradient_accumulation_steps.")
_PRECISION = By(model.precision, "Use dtype, bf16 or fp16.")
_LORA_RULE = By(model.adapter, "Use adapter: lora, and the options lora_….")
_SCHEDULE = By(groups.schedule, "Use lr_scheduler_type, lr_scheduler_kwargs, warmup_steps.")
_SAVING = By(groups.saving, "Use save_strategy and save_steps.")
_REPORTS = By(groups.reports, "Use report_to and run_name.")
_KERNEL = Left("it changes how fast a step is computed, not what it learns")
_SHARDS = Left("fsdp: true shards by layer; its own settings are in docs/sharding.md")
_SUPERVISED = Left("axolotl reads it in supervised runs alone")
_OTHER_METHOD = Left("it belongs to another method")
_GENERATES = Left("no text is generated in a preference run")
_ONE_PROCESS = Left("rows are read in one process, and not kept on a disk")
_MODEL = Refused("prefkit trains the model as it is")
_VOCABULARY = Refused("prefkit changes no vocabulary", "Save the enlarged model, and train that.")
_GONE = Refused("axolotl has taken it away")
_BY_ITSELF = Left("prefkit or transformers finds it by itself")
RULES: dict[str, Rule] = {
    # -- loss ---------------------------------------------------------------------------------
    **each(_LOSS, "rl simpo_gamma cpo_alpha"),
    **each(By(groups.loss, LOSS_HINT), "dpo_loss_type dpo_loss_weights dpo_label_smoothing"),
    **each(By(groups.loss, _BETA_HINT), "trl rl_beta dpo_beta orpo_alpha"),
    "dpo_use_weighting": To("use_weighting", off=(None, False)),
    "rpo_alpha": Refused("axolotl has taken it away", "Use nll_weight."),
    **each(_GONE, "dpo_norm_loss dpo_use_logits_to_keep dpo_generate_during_eval"),
    "precompute_ref_log_probs": To("precompute_ref_log_probs"),
    **each(Left("the loss is fused already"), "dpo_use_liger_kernel flash_attn_cross_entropy"),
    "dpo_padding_free": Left("rows are read without padding wherever the model allows"),
    **each(
        _OTHER_METHOD,
        "kto_desirable_weight kto_undesirable_weight ebft vllm num_labels "
        "center_rewards_coefficient",
    ),
    **each(Refused("prefkit train learns from pairs"), "reward_model process_reward_model"),
    # -- model --------------------------------------------------------------------------------
    "base_model": To("model"),
    "tokenizer_config": To("tokenizer"),
    **each(To("revision", off=("main", None)), "revision_of_model model_revision"),
    **each(
        _BY_ITSELF,
        "model_type tokenizer_type processor_type type_of_model tokenizer_use_fast "
        "is_falcon_derived_model is_llama_derived_model is_mistral_derived_model "
        "is_qwen_derived_model tokenizer_legacy processor_kwargs device_map device world_size "
        "local_rank ddp low_cpu_mem_usage max_memory gpu_memory_limit "
        "experimental_skip_move_to_device tokenizer_save_jinja_files strict is_preprocess "
        "preprocess_iterable total_num_tokens axolotl_config_path total_supervised_tokens "
        "sample_packing_eff_est",
    ),
    "trust_remote_code": Left("set it yourself where you have read the code that it runs"),
    **each(
        _MODEL,
        "base_model_config cls_model_config overrides_of_model_config overrides_of_model_kwargs "
        "model_config model_kwargs model_quantization_config model_quantization_config_kwargs "
        "use_onebitllms tokenizer_use_mistral_common rope_scaling reinit_weights trainer_cls "
        "scaling_softmax scaling_softmax_factor scaling_softmax_bias use_pose "
        "pose_split_on_token_ids pose_max_context_len pose_num_chunks s2_attention "
        "llama4_linearized_experts quantize_moe_experts qat quantization fp32_norms "
        "fp32_norm_classes float32 unfrozen_parameters lisa_n_layers lisa_step_interval fp8 "
        "fix_untrained_tokens",
    ),
    **each(
        _VOCABULARY,
        "tokens added_tokens_overrides resize_token_embeddings_to_32x shrink_embeddings",
    ),
    "special_tokens": By(model.special_tokens, "Save the tokenizer with them."),
    **each(Left("no tokens are added"), "mean_resizing_embeddings"),
    **each(Left("it changes rounding alone"), "embeddings_skip_upcast peft_autocast_adapter_dtype"),
    **each(
        Left("prefkit trains text models"),
        "freeze_mm_modules image_size image_resize_algorithm role_boundaries",
    ),
    **each(By(model.attention, "Use attn_implementation."), " ".join(model.ATTENTION)),
    "attn_implementation": To("attn_implementation"),
    "xformers_attention": _KERNEL,
    **each(
        _KERNEL,
        "flex_attn_compile_kwargs flash_attn_fuse_mlp flash_optimum sage_attention use_kernels "
        "gemma4_hybrid_attn_impl large_head_attention flash_attn_d512 sdpa_varlen "
        "fused_attn_kernel experts_implementation lora_mlp_kernel lora_qkv_kernel lora_o_kernel "
        "lora_embedding_kernel chunked_cross_entropy chunked_cross_entropy_num_chunks tiled_mlp "
        "tiled_mlp_num_shards tiled_mlp_use_original_mlp flash_attn_rms_norm "
        "selective_checkpointing layer_offloading torch_compile_options deepcompile gc_steps "
        "gc_collect_steps torchdistx_path",
    ),
    # -- adapter ------------------------------------------------------------------------------
    **each(_LORA_RULE, "adapter lora_target_linear lora_target_modules " + " ".join(model.LORA)),
    "bnb_config_kwargs": By(model.adapter, "Use the options bnb_4bit_… and use_bnb_nested_quant."),
    "lora_model_dir": Refused(
        "prefkit goes on with an adapter that is named as the model, and takes all from its folder",
        "Name the folder as base_model, and remove adapter and the lora_ keys.",
    ),
    **each(
        Refused("an adapter of prefkit train changes whole layers, all alike"),
        "lora_fan_in_fan_out lora_target_parameters lora_rank_pattern lora_alpha_pattern "
        "peft_layers_to_transform peft_layers_pattern peft_layer_replication "
        "peft_init_lora_weights peft_trainable_token_indices peft_ensure_weight_tying "
        "loraplus_lr_ratio relora gptq",
    ),
    "peft": Refused("prefkit's adapters begin at 0", off=(None, {})),
    **each(
        Left("it belongs to an option that is off"),
        "loraplus_lr_embedding relora_prune_ratio relora_prune_method relora_cpu_offload "
        "lisa_layers_attribute qlora_sharded_model_loading lora_on_cpu merge_lora merge_method "
        "eaft_alpha eaft_k use_eaft",
    ),
    # -- data ---------------------------------------------------------------------------------
    **each(_DATA, "datasets test_datasets chat_template chat_template_jinja"),
    "val_set_size": Refused(
        "prefkit holds no rows out", "Split the rows yourself, and name both files.", (None, 0)
    ),
    **each(_LENGTHS, "sequence_len excess_length_strategy"),
    "max_prompt_len": _OTHER_METHOD,
    "eval_sequence_len": Refused("prefkit has one max_length", off=(None,)),
    "min_sample_len": _SUPERVISED,
    "pretraining_dataset": Refused("prefkit train learns from pairs"),
    "streaming": Refused("prefkit train reads rows that are in memory, shuffled"),
    "dataset_exact_deduplication": Refused("prefkit takes every row", "Make the rows unique."),
    "skip_prepare_dataset": Left("rows are prepared by prefkit"),
    **each(
        _ONE_PROCESS,
        "dataset_prepared_path dataset_shard_num dataset_shard_idx num_dataset_shards_to_save "
        "dataset_processes dataset_num_proc dataset_keep_in_memory push_dataset_to_hub "
        "hf_use_auth_token",
    ),
    **each(
        Left("rows are shuffled at each epoch"),
        "shuffle_merged_datasets shuffle_before_merging_datasets",
    ),
    "remove_unused_columns": Left("prefkit makes the columns of its batches itself"),
    "sample_packing": Refused(
        "axolotl packs no pairs", "Remove it; prefkit packs with tokens_per_batch."
    ),
    "pad_to_multiple_of": Same(),
    **each(
        _SUPERVISED,
        "sample_packing_group_size sample_packing_bin_size sample_packing_sequentially "
        "sample_packing_mp_start_method eval_sample_packing pad_to_sequence_len "
        "curriculum_sampling multipack_real_batches batch_flattening "
        "pretrain_multipack_buffer_size pretrain_multipack_attn pretraining_sample_concatenation "
        "streaming_multipack_buffer_size train_on_inputs eot_tokens max_packed_sequence_len "
        "do_causal_lm_eval eval_causal_lm_metrics do_bench_eval bench_dataset bench_split "
        "neftune_noise_alpha noisy_embedding_alpha group_by_length early_stopping_patience "
        "load_best_model_at_end metric_for_best_model greater_is_better auto_find_batch_size "
        "chat_template_kwargs default_system_message include_tkps",
    ),
    # -- steps --------------------------------------------------------------------------------
    **each(_BATCH, "micro_batch_size batch_size gradient_accumulation_steps"),
    "eval_batch_size": To("per_device_eval_batch_size"),
    "num_epochs": To("num_train_epochs"),
    "max_steps": To("max_steps", {None: -1, 0: -1}),
    **each(_PRECISION, "bf16 fp16 bfloat16 float16 tf32"),
    **each(
        By(model.checkpointing, "Use gradient_checkpointing."),
        "gradient_checkpointing activation_offloading",
    ),
    **each(By(groups.optimiser, "Use optim and optim_args."), "optimizer optim_args"),
    **each(
        _SCHEDULE,
        "lr_scheduler lr_scheduler_kwargs cosine_min_lr_ratio warmup_steps warmup_ratio",
    ),
    **each(
        Refused("prefkit has transformers' schedules and one learning rate"),
        "lr_quadratic_warmup cosine_constant_lr_ratio lr_div_factor lr_groups embedding_lr "
        "embedding_lr_scale jagged_restart_steps",
    ),
    **each(
        Left("it belongs to an option that is off"),
        "fp8_enable_fsdp_float8_all_gather jagged_restart_warmup_steps "
        "jagged_restart_anneal_steps adam_epsilon2 adam_beta3 dion_lr dion_momentum "
        "dion_rank_fraction dion_rank_multiple_of qgalore_rank qgalore_update_proj_gap "
        "qgalore_scale qgalore_proj_type qgalore_proj_quant qgalore_proj_bits "
        "qgalore_proj_group_size qgalore_cos_threshold qgalore_gamma_proj qgalore_queue_size",
    ),
    **each(
        Same(),
        "learning_rate weight_decay max_grad_norm adam_beta1 adam_beta2 adam_epsilon "
        "optim_target_modules seed output_dir save_only_model save_total_limit logging_steps "
        "gradient_checkpointing_kwargs dataloader_pin_memory dataloader_num_workers "
        "dataloader_prefetch_factor dataloader_drop_last accelerator_config ddp_timeout "
        "ddp_bucket_cap_mb ddp_broadcast_buffers ddp_find_unused_parameters "
        "torch_empty_cache_steps torch_compile_backend torch_compile_mode deepspeed "
        "resume_from_checkpoint hub_strategy hub_revision",
    ),
    "torch_compile": To("torch_compile", {"auto": False}),
    "auto_resume_from_checkpoints": To("resume_from_checkpoint", {True: "auto", False: None}),
    "include_tokens_per_second": Left("prefkit logs tokens_per_second"),
    # -- evaluation, checkpoints, logs ----------------------------------------------------------
    **each(_DATA, "eval_steps eval_strategy evaluation_strategy evals_per_epoch"),
    **each(_SAVING, "save_steps saves_per_epoch save_strategy"),
    **each(_REPORTS, " ".join((*groups.LOGGERS, *groups.RUN_NAMES, "wandb_project"))),
    "hub_model_id": By(groups.hub, "Use hub_model_id and push_to_hub."),
    "save_safetensors": Left("weights are always safetensors"),
    **each(
        Left("the logger's own variables say it"),
        "wandb_run_id wandb_mode wandb_entity wandb_watch wandb_log_model mlflow_tracking_uri "
        "mlflow_experiment_name hf_mlflow_log_artifacts comet_api_key comet_workspace "
        "comet_project_name comet_experiment_key comet_mode comet_online comet_experiment_config "
        "trackio_project_name trackio_space_id use_otel_metrics otel_metrics_host "
        "otel_metrics_port",
    ),
    **each(
        Left("it only looks at the run"),
        "profiler_steps profiler_steps_start save_first_step dynamic_checkpoint "
        "loss_watchdog_threshold loss_watchdog_patience",
    ),
    **each(
        _GENERATES,
        "generate_samples num_generation_samples generation_max_new_tokens generation_temperature "
        "generation_top_p generation_top_k generation_prompt_ratio generation_do_sample "
        "eval_table_size eval_max_new_tokens gradio_title gradio_share gradio_server_name "
        "gradio_server_port gradio_max_new_tokens gradio_temperature",
    ),
    # -- several devices ------------------------------------------------------------------------
    "fsdp": By(
        lambda draft: draft.write("fsdp", {"fsdp": bool(draft["fsdp"])}, _SHARDS.why),
        "Use fsdp: true.",
    ),
    **each(_SHARDS, "fsdp_version fsdp_final_state_dict_type dp_shard_size dp_replicate_size"),
    "fsdp_config": By(
        lambda draft: draft.write(
            "fsdp_config", {"fsdp": bool(draft["fsdp_config"] or draft.get("fsdp"))}, _SHARDS.why
        ),
        "Use fsdp: true (docs/sharding.md).",
    ),
    "context_parallel_size": To("sequence_parallel_size", {None: 1}),
    "sequence_parallel_degree": To("sequence_parallel_size", {None: 1}),
    "tensor_parallel_size": Refused("tensor parallelism cuts the head", "Use fsdp.", (None, 1)),
    **each(_KERNEL, "heads_k_stride ring_attn_func"),
    **each(
        Left("torchrun or accelerate launch starts several processes"),
        "use_ray ray_run_name ray_num_workers resources_per_worker",
    ),
    "plugins": By(groups.plugins, "prefkit has no plugins."),
}
DEFAULTS: Mapping[str, Any] = {
    **dict.fromkeys(("dpo_loss_type", "dpo_loss_weights", "dpo_label_smoothing", "trl")),
    **dict.fromkeys(("rl", "rl_beta", "dpo_beta", "orpo_alpha", "simpo_gamma", "cpo_alpha")),
    "rl_beta": 0.1,  # TRL's
    **dict.fromkeys(("adapter", "lora_target_linear", "lora_target_modules", *model.LORA)),
    "lora_dropout": 0.0,
    "bnb_config_kwargs": None,
    "sequence_len": 512,
    "excess_length_strategy": "drop",
    "micro_batch_size": 1,
    "gradient_accumulation_steps": None,
    "batch_size": None,
    "num_epochs": 1.0,
    "bf16": "auto",
    **dict.fromkeys(("fp16", "bfloat16", "float16", "tf32")),
    "gradient_checkpointing": False,
    "activation_offloading": False,
    "optimizer": "adamw_torch_fused",
    "optim_args": None,
    "lr_scheduler": "cosine",
    **dict.fromkeys(("lr_scheduler_kwargs", "cosine_min_lr_ratio", "warmup_steps", "warmup_ratio")),
    **dict.fromkeys(("save_steps", "saves_per_epoch")),
    "save_strategy": "epoch",
    "save_total_limit": 4,
    "output_dir": "./model-out",
    **dict.fromkeys((*groups.LOGGERS, *groups.RUN_NAMES, "wandb_project", "hub_model_id")),
    **dict.fromkeys(model.ATTENTION),
    **dict.fromkeys(("datasets", "test_datasets", "chat_template_jinja")),
    "chat_template": "tokenizer_default",
    **dict.fromkeys(("eval_steps", "eval_strategy", "evaluation_strategy", "evals_per_epoch")),
}
AXOLOTL = Trainer(
    name="axolotl",
    title="axolotl",
    version="of July 2026",
    rules=RULES,
    defaults=DEFAULTS,
    needs=("base_model",),
    inherits=False,
    families={
        "liger_": Left("it belongs to Liger's plugin: use_liger_kernel is prefkit's option"),
        "use_swanlab": Left("report_to: swanlab sends the log there"),
        "use_scattermoe": _KERNEL,
        "use_sonicmoe": _KERNEL,
        "swanlab_": Left("it belongs to SwanLab's plugin: report_to: swanlab"),
        "cut_cross_entropy": Left("the loss is fused already"),
        "prefkit_": By(write_own, "It is a key of prefkit's plugin."),
    },
)
