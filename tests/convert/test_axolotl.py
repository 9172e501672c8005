"""axolotl's configs: losses, datasets with a type each, and the text that they are."""

from typing import Any

import pytest

from prefkit.convert.trainers.axolotl_data import TEMPLATES
from prefkit.data import ReadOptions, prepare_pairs
from prefkit.data.text.render import TokenizeOptions
from prefkit.errors import ConfigError
from tests.convert.convert_cases import left, options, refused, translated
from tests.train.trainer_cases import byte_tokenizer

NAME = "axolotl"
CHAT = "chat_template.default"
LORA = {"adapter": "lora", "lora_r": 8, "lora_alpha": 16, "lora_target_linear": True}
QLORA = {**LORA, "adapter": "qlora", "load_in_4bit": True}
PLUGIN = {"plugins": ["prefkit.integrations.axolotl.PrefkitPlugin"]}


def test_defaults_are_written_out() -> None:
    assert options(NAME) == {
        "model": "m",
        "method": "dpo",
        "learning_rate": 1e-5,
        "beta": 0.1,
        "max_length": 512,
        "too_long": "skip",
        "equal": "skip",
        "per_device_train_batch_size": 1,
        "num_train_epochs": 1.0,
        "dtype": "bfloat16",
        "bf16": True,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.03,
        "save_strategy": "epoch",
        "save_total_limit": 4,
        "output_dir": "./model-out",
    }


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"rl": "ipo", "rl_beta": 0.2}, {"method": "dpo", "loss_type": "ipo", "beta": 0.2}),
        ({"dpo_loss_type": ["hinge"]}, {"loss_type": "hinge"}),
        (
            {"rl": "simpo", "simpo_gamma": 0.7, "cpo_alpha": 0},
            {"method": "simpo", "margin": 0.7, "beta": 0.1},
        ),
        ({"dpo_beta": 0.3}, {"beta": 0.3}),
        ({"trl": {"beta": 0.4}, "rl_beta": 0.4}, {"beta": 0.4}),
        ({"bf16": False}, {"dtype": "float32", "bf16": False}),
        ({"bf16": "full"}, {"dtype": "bfloat16", "bf16": False, "bf16_full_eval": True}),
        ({"bf16": None, "fp16": True}, {"dtype": "float32", "fp16": True}),
        ({"excess_length_strategy": "truncate"}, {"too_long": "truncate_end"}),
        ({"batch_size": 8, "micro_batch_size": 2}, {"gradient_accumulation_steps": 4}),
        (
            {"adapter": "lora", "lora_r": 8, "lora_alpha": 16, "lora_target_linear": True},
            {"adapter": "lora", "lora_r": 8, "lora_target_modules": "all-linear"},
        ),
        ({**QLORA}, {"load_in_4bit": True, "use_bnb_nested_quant": True}),
        ({**QLORA, "adapter": "lora"}, {"load_in_4bit": None, "use_bnb_nested_quant": None}),
        (
            {**QLORA, "bnb_config_kwargs": {"bnb_4bit_use_double_quant": False}},
            {"load_in_4bit": True, "use_bnb_nested_quant": False},
        ),
        (
            {**QLORA, "bnb_config_kwargs": {"bnb_4bit_quant_type": "fp4"}},
            {"use_bnb_nested_quant": True, "bnb_4bit_quant_type": "fp4"},
        ),
        (
            {**PLUGIN, "prefkit_method": "tdpo2", "prefkit_alpha": 0.3},
            {"method": "tdpo2", "alpha": 0.3, "beta": 0.1},
        ),
        ({**PLUGIN, "prefkit_append_eos": "auto"}, {"method": "dpo"}),
        ({"debug": None, "flash_attention": True}, {"attn_implementation": "flash_attention_2"}),
        ({"warmup_steps": 1}, {"warmup_steps": 2}),
        ({"warmup_ratio": 0.1}, {"warmup_steps": 0.1}),
        (
            {"cosine_min_lr_ratio": 0.1},
            {
                "lr_scheduler_type": "cosine_with_min_lr",
                "lr_scheduler_kwargs": {"min_lr_rate": 0.1},
            },
        ),
        ({"saves_per_epoch": 2, "num_epochs": 2}, {"save_strategy": "steps", "save_steps": 0.25}),
        ({"saves_per_epoch": 1, "num_epochs": 1}, {"save_strategy": "epoch", "save_steps": None}),
        ({"wandb_project": "p", "wandb_name": "n"}, {"report_to": ["wandb"], "run_name": "n"}),
        ({"hub_model_id": "a/b"}, {"hub_model_id": "a/b", "push_to_hub": True}),
        ({"fsdp": ["full_shard"], "fsdp_config": {"fsdp_version": 2}}, {"fsdp": True}),
        ({"optim_args": {"a": 1, "b": 2}}, {"optim_args": "a=1,b=2"}),
        ({"max_steps": 0}, {"max_steps": -1}),
        ({"adam_beta1": None, "resume_from_checkpoint": None}, {"adam_beta1": None}),
        ({"plugins": ["axolotl.integrations.liger.LigerPlugin"], "liger_rope": True}, {}),
        ({"use_swanlab": True, "swanlab_mode": "cloud"}, {}),
    ],
)
def test_keys_become_options(config: dict[str, Any], expected: dict[str, Any]) -> None:
    found = options(NAME, **config)
    for name, value in expected.items():
        assert found.get(name) == value, name


@pytest.mark.parametrize(
    ("config", "key", "words"),
    [
        ({"rl": "simpo", "simpo_gamma": 0.7}, "cpo_alpha", "Set cpo_alpha: 0"),
        ({"rl": "simpo", "cpo_alpha": 0}, "simpo_gamma", "target margin"),
        ({"dpo_label_smoothing": 0.1}, "dpo_label_smoothing", "conservative DPO"),
        ({"val_set_size": 0.05}, "val_set_size", "Split the rows yourself"),
        (
            {"special_tokens": {"eos_token": "<e>", "pad_token": "<p>"}},
            "special_tokens.eos_token",
            "changes no tokenizer",
        ),
        ({"optimizer": "came_pytorch"}, "optimizer", "transformers has no came_pytorch"),
        ({"lr_scheduler": "rex"}, "lr_scheduler", "transformers has no rex"),
        ({"plugins": ["mine.Plugin"]}, "plugins", "mine.Plugin"),
        ({"sample_packing": True}, "sample_packing", "tokens_per_batch"),
        (
            {"chat_template": "alpaca", "datasets": [{"path": "a", "type": CHAT}]},
            "chat_template",
            "axolotl's own text",
        ),
        ({"rpo_alpha": 1.0}, "rpo_alpha", "nll_weight"),
        ({**LORA, "lora_model_dir": "a"}, "lora_model_dir", "the folder as base_model"),
        ({**PLUGIN, "prefkit_append_eos": "never"}, "prefkit_append_eos", "a column append_eos"),
        (
            {**QLORA, "bnb_config_kwargs": {"llm_int8_threshold": 5.0}},
            "bnb_config_kwargs.llm_int8_threshold",
            "no option for it",
        ),
        ({"adapter": "lora", "lora_target_linear": True, "lora_alpha": 8}, "lora_r", "Give it"),
    ],
)
def test_what_changes_the_training_is_refused(config: dict[str, Any], key: str, words: str) -> None:
    found = refused(NAME, **config)
    assert [*found] == [key]
    assert words in found[key]


@pytest.mark.parametrize("kind", ["grpo", "kto", None])
def test_other_methods_are_no_runs_of_pairs(kind: str | None) -> None:
    with pytest.raises(ConfigError, match=r"rl is .*learns from pairs"):
        translated(NAME, rl=kind)


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        ({"type": CHAT}, {"string_prompts": "chat", "chat_template": None}),
        ({"type": CHAT, "field_messages": "conversation"}, {"columns": None}),
        (
            {"type": CHAT, "field_messages": "dialogue", "field_chosen": "good"},
            {"columns": {"prompt": "dialogue", "chosen": "good"}},
        ),
        (
            {"type": "chatml.intel"},
            {"string_prompts": "chat", "chat_template": TEMPLATES["chatml"]},
        ),
        ({"type": "llama3.icr"}, {"chat_template": TEMPLATES["llama3"]}),
        ({"type": None}, {"string_prompts": None}),
        (
            {"type": {"field_prompt": "ask", "prompt_format": "[INST] {prompt} [/INST]"}},
            {"columns": {"prompt": "ask"}, "prompt_template": "[INST] {prompt} [/INST]"},
        ),
        ({"type": CHAT, "split": "train[:9]"}, {"train_split": "train[:9]"}),
        ({"type": CHAT, "name": "en"}, {"train_data": "a:en"}),
        ({"type": CHAT, "ds_type": "json", "data_files": ["b.jsonl"]}, {"train_data": "b.jsonl"}),
        ({"type": CHAT, "roles": {"user": ["human"], "assistant": ["gpt"]}}, {}),
        ({"type": CHAT, "message_property_mappings": {"role": "from", "content": "value"}}, {}),
    ],
)
def test_datasets_are_read_by_their_type(dataset: dict, expected: dict[str, Any]) -> None:
    found = options(NAME, datasets=[{"path": "a", **dataset}])
    assert found["train_data"] == expected.get("train_data", "a")
    for name, value in expected.items():
        if (name, value) == ("string_prompts", None):
            assert found.get(name) in (None, "raw")
        else:
            assert found.get(name) == value, name


@pytest.mark.parametrize(
    ("datasets", "key", "words"),
    [
        ([{"type": "zephyr.nectar"}], "datasets[0].type", "leave the type out"),
        ([{"type": CHAT, "path": None}], "datasets[0].path", "is missing"),
        ([{"type": CHAT, "shards": 4}], "datasets[0].shards", "whole sources"),
        ([{"type": CHAT, "roles": {"user": ["me"]}}], "datasets[0].roles", "usual roles"),
        (
            [{"type": CHAT, "message_property_mappings": {"role": "who"}}],
            "datasets[0].message_property_mappings",
            "{role, content}",
        ),
        (
            [{"type": {"prompt_format": "{system} {prompt}"}}],
            "datasets[0].type.prompt_format",
            "Write it into the rows",
        ),
        ([{"type": CHAT}, {"type": "chatml.ultra"}], "chat_template", "Keep one"),
        ([{"type": CHAT}, {"type": None}], "datasets[1].type", "means another string_prompts"),
        (
            [{"type": CHAT, "field_chosen": "a"}, {"type": CHAT, "field_chosen": "b"}],
            "datasets[1].field_chosen",
            "one name for all",
        ),
    ],
)
def test_datasets_that_are_not_read_are_refused(datasets: list, key: str, words: str) -> None:
    given = {"datasets": [{"path": "p", **one} for one in datasets]}
    template = {"chat_template": "llama3"} if key == "chat_template" else {}
    found = refused(NAME, **given, **template)
    assert [*found] == [key]
    assert words in found[key]


def test_evaluation_needs_test_datasets() -> None:
    held_out = {"test_datasets": [{"path": "t", "type": CHAT}], "evals_per_epoch": 4}
    found = options(NAME, datasets=[{"path": "a", "type": CHAT}], **held_out)
    assert found["eval_data"] == "t"
    assert found["eval_strategy"] == "steps"
    assert found["eval_steps"] == 0.25
    assert found["eval_on_start"] is True
    assert left(NAME, evals_per_epoch=4)["evals_per_epoch"] == "there are no test_datasets"
    assert left(NAME, test_datasets=[{"path": "t"}])["test_datasets"] == "nothing is evaluated"


def test_a_template_of_the_config_is_written() -> None:
    rows = {"datasets": [{"path": "a", "type": CHAT}]}
    assert options(NAME, **rows, chat_template_jinja="{{ x }}")["chat_template"] == "{{ x }}"
    assert options(NAME, **rows, chat_template="chatml")["chat_template"] == TEMPLATES["chatml"]
    assert "chat_template" not in options(NAME, **rows, chat_template="tokenizer_default")
    assert "tokenizer's own" in left(NAME, **rows, chat_template="qwen3")["chat_template"]


ROW = {"system": "Be brief.", "question": "2+2?", "chosen": "4", "rejected": "5"}
# What axolotl's strategies of these types write (its prompt_strategies/dpo/chatml.py, llama3.py).
WRITTEN = {
    "chatml": (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n2+2?<|im_end|>\n"
        "<|im_start|>assistant\n",
        "4<|im_end|>",
    ),
    "llama3": (
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n2+2?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "4<|eot_id|>",
    ),
}


@pytest.mark.parametrize("family", WRITTEN)
def test_rows_are_the_text_that_axolotl_writes(family: str) -> None:
    tokenizer = byte_tokenizer()
    ends = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>"}
    tokenizer.add_special_tokens({"bos_token": "<s>", "additional_special_tokens": [ends[family]]})
    found = options(NAME, datasets=[{"path": "a", "type": f"{family}.intel"}])
    reading = TokenizeOptions(
        string_prompts=found["string_prompts"], chat_template=found["chat_template"]
    )
    (pair,) = prepare_pairs([ROW], tokenizer, reading=ReadOptions(), options=reading).pairs
    prompt, response = WRITTEN[family]
    ids, scored = pair.chosen.ids, pair.chosen.scored
    assert tokenizer.decode(ids) == prompt + response
    assert tokenizer.decode(ids[scored]) == response
