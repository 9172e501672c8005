"""The trainer: accumulation, references, evaluation, logs, and what it refuses."""

import copy
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import TrainerCallback

from prefkit import PreferenceTrainer
from prefkit.data.batch.collators import PairCollator
from prefkit.data.dataset import prepare_pairs
from prefkit.data.formats.detect import ReadOptions
from prefkit.errors import ConfigError, ModelError, RowError
from prefkit.train.metrics import RewardWatch
from prefkit.train.models.dropout import disable_dropout
from tests.train.trainer_cases import (
    CONFIGS,
    ROWS,
    byte_tokenizer,
    config,
    logs_of,
    tiny_model,
    trainer,
    weights_of,
)

METHODS = ["dpo", "step-dpo", "scdpo", "cdpo", "tdpo1", "tdpo2", "simpo"]
LORA = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")


class FirstGradient(TrainerCallback):
    """Keeps the gradient that the first optimiser step sees."""

    def __init__(self) -> None:
        self.grads: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.grads:
            for name, p in kwargs["model"].named_parameters():
                self.grads[name] = p.grad.detach().clone()


def first_gradient(
    folder: Path, **changes: Any
) -> tuple[dict[str, torch.Tensor], PreferenceTrainer]:
    keep = FirstGradient()
    model = tiny_model(scale=3.0).double()
    trained = trainer(folder, model, callbacks=[keep], max_steps=1, max_grad_norm=0.0, **changes)
    trained.train()
    return keep.grads, trained


@pytest.mark.parametrize("method", ["dpo", "tdpo2", "simpo"])
def test_accumulated_gradient_is_the_large_batch_s(method: str, tmp_path: Path) -> None:
    common: dict[str, Any] = {"method": method, "seed": 3}
    large, one = first_gradient(tmp_path, per_device_train_batch_size=4, **common)
    small, four = first_gradient(
        tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=4, **common
    )
    for name, gradient in large.items():
        torch.testing.assert_close(small[name], gradient, rtol=1e-9, atol=1e-12)
    assert max(float(g.abs().max()) for g in large.values()) > 1e-3
    for key, value in logs_of(one)[0].items():
        if key not in ("tokens_per_second", "peak_memory_mb", "active_weight_fraction"):
            assert logs_of(four)[0][key] == pytest.approx(value, rel=1e-5), key


def test_a_short_last_window_is_divided_by_its_own_pairs(tmp_path: Path) -> None:
    """Six pairs in windows of four: the second step sees two, and its loss is their mean."""
    rows = ROWS[:6]
    small: dict[str, Any] = {"gradient_accumulation_steps": 4, "per_device_train_batch_size": 1}
    trained = trainer(tmp_path, rows=rows, max_steps=-1, num_train_epochs=1, **small)
    trained.train()
    whole = trainer(tmp_path, rows=rows, max_steps=-1, num_train_epochs=1)
    whole.train()
    pairs = zip(logs_of(trained), logs_of(whole), strict=True)
    for step, (got, want) in enumerate(pairs):
        for key in ("loss", "grad_norm", "rewards/margins", "logps/chosen"):
            assert got[key] == pytest.approx(want[key], rel=1e-3, abs=1e-5), (step, key)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains(method: str, tmp_path: Path) -> None:
    trained = trainer(tmp_path, method=method, max_steps=12, eval_dataset=ROWS[:5])
    before = trained.evaluate()
    trained.train()
    after = trained.evaluate()
    assert after["eval_loss"] < before["eval_loss"]
    assert after["eval_rewards/margins"] > before["eval_rewards/margins"]
    if method.startswith("tdpo"):
        assert before["eval_kl/rejected"] == pytest.approx(0, abs=1e-5)
        assert after["eval_kl/rejected"] > 1e-4


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("method", ["dpo", "tdpo2"])
def test_start_is_the_reference(family: str, method: str, tmp_path: Path) -> None:
    """Before the first step policy and reference agree: loss ln 2, no KL, no reward."""
    start = trainer(tmp_path, tiny_model(family, scale=3.0), method=method, eval_dataset=ROWS)
    metrics = start.evaluate()
    assert metrics["eval_loss"] == pytest.approx(0.693147, abs=1e-5)
    assert metrics["eval_rewards/chosen"] == pytest.approx(0, abs=1e-5)
    assert metrics["eval_logps/chosen"] < -1


@pytest.mark.parametrize("method", ["dpo", "tdpo2"])
def test_lora_equals_a_frozen_copy_as_reference(method: str, tmp_path: Path) -> None:
    lora = trainer(tmp_path, tiny_model(scale=3.0), method=method, peft_config=LORA)
    assert lora.reference is not None
    assert lora.reference.adapter_owner is lora.model
    lora.train()
    model = get_peft_model(tiny_model(scale=3.0), LORA)
    full = trainer(tmp_path, model, method=method, ref_model=tiny_model(scale=3.0))
    with torch.no_grad():  # the same random half of the adapter
        for name, value in lora.model.named_parameters():
            if "lora_" in name:
                dict(full.model.named_parameters())[name].copy_(value)
    assert not torch.equal(
        dict(lora.model.named_parameters())[
            "base_model.model.model.layers.0.self_attn.q_proj.lora_B.default.weight"
        ],
        torch.zeros(16, 4),
    )
    got, want = lora.evaluate(ROWS), full.evaluate(ROWS)
    for key in ("eval_loss", "eval_rewards/margins", "eval_logps/chosen"):
        assert got[key] == pytest.approx(want[key], rel=1e-4, abs=1e-5), key
    assert abs(got["eval_rewards/margins"]) > 1e-4
    frozen = [p.grad for n, p in lora.model.named_parameters() if "lora_" not in n]
    assert frozen == [None] * len(frozen)


def test_checkpointed_lora_trains(tmp_path: Path) -> None:
    options: dict[str, Any] = {"peft_config": LORA, "gradient_checkpointing": True}
    trained = trainer(tmp_path, **options)
    before = weights_of(trained.model)
    trained.train()
    changed = {n for n, p in trained.model.named_parameters() if not torch.equal(p, before[n])}
    assert changed
    assert all("lora_" in name for name in changed)


def test_reference_stays_where_it_was(tmp_path: Path) -> None:
    trained = trainer(tmp_path)
    assert trained.reference is not None
    before = weights_of(trained.reference.model)
    trained.train()
    for name, value in trained.reference.model.named_parameters():
        assert torch.equal(value, before[name])
        assert value.grad is None


def test_gradient_checkpointing_changes_nothing(tmp_path: Path) -> None:
    plain = trainer(tmp_path)
    plain.train()
    recomputed = trainer(tmp_path, gradient_checkpointing=True)
    recomputed.train()
    for got, want in zip(recomputed.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["dpo", "tdpo2"])
def test_bf16_mixed_precision_is_close(method: str, tmp_path: Path) -> None:
    exact = trainer(tmp_path, method=method)
    exact.train()
    mixed = trainer(tmp_path, method=method, bf16=True)
    mixed.train()
    for key in ("loss", "rewards/margins"):
        assert logs_of(mixed)[-1][key] == pytest.approx(logs_of(exact)[-1][key], rel=0.1), key
    assert next(mixed.model.parameters()).dtype == torch.float32


@pytest.mark.parametrize("changes", [{}, {"precompute_ref_log_probs": True}, {"peft_config": LORA}])
def test_bf16_policy_and_reference_agree_to_the_last_bit(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    """Same precision on both sides: the first step has no reward at all, not rounding noise."""
    options = {"bf16": True, "max_steps": 1, "precompute_ref_batch_size": 4, **changes}
    trained = trainer(tmp_path, tiny_model("gemma2", scale=3.0), rows=ROWS[:4], **options)
    trained.train()
    assert abs(logs_of(trained)[0]["rewards/chosen"]) < 1e-6
    assert abs(logs_of(trained)[0]["rewards/margins"]) < 1e-6


def noisy(name: str, **sizes: Any) -> Any:
    """A model with every rate of dropout, and of a router's noise, at 0.5."""
    from transformers import AutoConfig, AutoModelForCausalLM

    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 40}
    config = AutoConfig.for_model(name, **{**small, **sizes})
    for key in list(config.to_dict()):
        if "drop" in key or key in ("router_jitter_noise", "input_jitter_noise"):
            setattr(config, key, 0.5)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).train()


@pytest.mark.parametrize("name", ["bloom", "gpt2", "starcoder2", "opt", "bart", "mixtral"])
def test_dropout_is_off_wherever_a_family_keeps_its_rate(name: str) -> None:
    """As modules (gpt2), as numbers that the forward reads (bloom's hidden_dropout, …), whole
    layers (opt, bart) or as noise of the routers (mixtral)."""
    bart = {"d_model": 16, "decoder_layers": 2, "decoder_attention_heads": 2, "pad_token_id": 0}
    sizes = {"bart": bart, "mixtral": {"num_key_value_heads": 1, "intermediate_size": 16}}
    model = noisy(name, **sizes.get(name, {}))

    def different() -> int:
        """Of the results of eight forwards."""
        ids = torch.arange(8)[None]
        found = [model(input_ids=ids, use_cache=False).logits for _ in range(8)]
        return len({tuple(logits.flatten().tolist()) for logits in found})

    assert different() > 1
    disable_dropout(model)
    assert different() == 1


@pytest.mark.parametrize("name", ["falcon", "persimmon"])
def test_a_rate_that_is_read_from_the_config_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match=r"_dropout of 0\.5 from the config.*_dropout=0"):
        disable_dropout(noisy(name))


def test_the_rates_of_an_adapter_stay() -> None:
    from peft import OFTConfig

    options: dict[str, Any] = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj"]}
    saved = LoraConfig(**options, lora_dropout=0.25, modules_to_save=["norm"])
    for adapter in (saved, OFTConfig(**options, oft_block_size=4, module_dropout=0.25)):
        model = get_peft_model(tiny_model(attention_dropout=0.5), adapter)
        before = [getattr(m, "p", None) for n, m in model.named_modules() if "_dropout" in n]
        assert 0.25 in before
        disable_dropout(model)
        after = [getattr(m, "p", None) for n, m in model.named_modules() if "_dropout" in n]
        assert after == before
        assert model.get_base_model().model.layers[0].self_attn.attention_dropout == 0


def test_dropout_is_off_unless_asked_for(tmp_path: Path) -> None:
    model = tiny_model(attention_dropout=0.5)
    off = trainer(tmp_path, copy.deepcopy(model))
    assert off.model.model.layers[0].self_attn.attention_dropout == 0
    on = trainer(tmp_path, model, disable_dropout=False)
    assert on.model.model.layers[0].self_attn.attention_dropout == 0.5
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], lora_dropout=0.25)
    adapted = trainer(tmp_path, peft_config=lora)
    rates = {m.p for m in adapted.model.modules() if isinstance(m, torch.nn.Dropout)}
    assert rates == {0.25}


# -- rows and evaluation --------------------------------------------------------------------------


def test_rows_in_every_form(tmp_path: Path) -> None:
    import json

    import datasets

    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    prepared = prepare_pairs(ROWS, byte_tokenizer(), reading=ReadOptions(level="solution"))
    seen = []
    for rows in (ROWS, str(path), [str(path)], datasets.Dataset.from_list(ROWS), prepared):
        metrics = trainer(tmp_path / "out", rows=rows, eval_dataset=rows).evaluate()
        seen.append(metrics["eval_logps/chosen"])
    assert seen == [seen[0]] * 5


def test_metrics_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    rows = [*ROWS[:6], {"prompt": "say", "chosen": " a long word" * 3, "rejected": " no"}]
    seen = []
    for size in (1, 2, 7):
        one = trainer(tmp_path, eval_dataset=rows, per_device_eval_batch_size=size, method="tdpo2")
        seen.append(one.evaluate())
    for key in ("eval_loss", "eval_logps/chosen", "eval_rewards/accuracies"):
        assert seen[0][key] == pytest.approx(seen[1][key], rel=1e-5)
        assert seen[0][key] == pytest.approx(seen[2][key], rel=1e-5)


def test_several_evaluation_sets_and_the_log(tmp_path: Path) -> None:
    sets = {"easy": ROWS[:4], "hard": ROWS[4:9]}
    options: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 2, "eval_dataset": sets}
    trained = trainer(tmp_path, **options)
    trained.train()
    assert len(logs_of(trained, "eval_easy_loss")) == 2
    assert len(logs_of(trained, "eval_hard_rewards/margins")) == 2
    line = logs_of(trained)[-1]
    for name in ("tokens_per_second", "peak_memory_mb", "active_weight_fraction"):
        assert line[name] > 0
    # The time of both evaluations is taken out once each: no rate that this machine cannot have.
    assert all(line["tokens_per_second"] < 1e6 for line in logs_of(trained))
    loader = trained.get_train_dataloader()
    batches = [batch for _, batch in zip(range(4), loader, strict=False)]
    assert trained.state.global_step == 4
    assert line["num_tokens_read"] == sum(batch["num_tokens"] for batch in batches)
    assert line["num_tokens"] == sum(batch["text_tokens"] for batch in batches)
    assert line["num_tokens_read"] < line["num_tokens"]  # common prefixes are read once


def test_active_weight_fraction_counts_weights(tmp_path: Path) -> None:
    row = {"prompt": "abcd", "chosen": "xy", "rejected": "z", "append_eos": False}
    weighted = {**row, "rejected_spans": [[0, 1, 0.5]]}
    whole = trainer(tmp_path, rows=[row], eval_dataset=[row]).evaluate()
    less = trainer(tmp_path, rows=[row], eval_dataset=[weighted]).evaluate()
    assert whole["eval_active_weight_fraction"] == pytest.approx(3 / 11)
    assert less["eval_active_weight_fraction"] == pytest.approx(2.5 / 11)


def test_step_rows_score_no_end_token(tmp_path: Path) -> None:
    row = {"prompt": "q:", "prefix": " one.", "chosen": " two.", "rejected": " too."}
    for method, scored in (("step-dpo", 5 + 5), ("scdpo", 6 + 6)):
        made = trainer(tmp_path, rows=[row], method=method)
        batch = made.data_collator([made.train_dataset[0]])
        ends = (batch["targets"] == 256).sum()
        assert int((batch["targets"] >= 0).sum()) == scored
        assert int(ends) == (0 if method == "step-dpo" else 2)


# -- messages -------------------------------------------------------------------------------------


def test_falling_chosen_reward_is_explained_once(caplog: Any) -> None:
    watch = RewardWatch(patience=2)
    said = [watch.see(-0.1 * step, 0.2 * step) for step in range(8)]
    texts = [text for text in said if text]
    assert len(texts) == 1
    for word in ("falling", "margin", "learning_rate", "nll_weight", "tdpo2"):
        assert word in texts[0]
    rising = RewardWatch(patience=2)
    assert not any(rising.see(0.1 * step, 0.2 * step) for step in range(8))
    noisy = RewardWatch(patience=2)
    assert not any(noisy.see(-0.1 + 0.05 * (step % 2), 0.2) for step in range(8))


def test_falling_chosen_reward_reaches_the_log(tmp_path: Path, caplog: Any) -> None:
    # The same beginning on both sides: lowering the rejected lowers the chosen along with it.
    rows = [{"prompt": "go", "chosen": " aaaaaaaab", "rejected": " aaaaaaaac"} for _ in range(8)]
    with caplog.at_level(logging.WARNING):
        trained = trainer(tmp_path, rows=rows, max_steps=1)
        for step in range(6):
            trained.meter.explain({"rewards/chosen": -0.1 * step, "rewards/margins": 0.1 * step})
    assert sum("chosen answers is falling" in record.message for record in caplog.records) == 1


def short(**row: Any) -> list[dict[str, Any]]:
    return [{"prompt": "1+1=", "chosen": " 2", "rejected": " 3", **row}]


REFUSED: dict[str, tuple[dict[str, Any], type[Exception], list[str]]] = {
    "same objects": ({"ref_model": "itself"}, ConfigError, ["ref_model", "same object"]),
    "reference for simpo": (
        {"method": "simpo", "ref_model": "another"},
        ConfigError,
        ["ref_model", "simpo"],
    ),
    "vocabularies": ({"ref_model": "smaller vocabulary"}, ModelError, ["vocabulary", "100"]),
    "softcaps under a KL": (
        {"ref_model": "softcap", "method": "tdpo2"},
        ModelError,
        ["caps", "3.0"],
    ),
    "two adapters": (
        {"model": "adapted", "peft_config": LORA},
        ConfigError,
        ["adapter already", "prefkit merge"],
    ),
    "nothing to train": ({"model": "frozen"}, ModelError, ["trainable"]),
    "sequence too long": ({"rows": short(prompt="x" * 300)}, RowError, ["row 0", "too_long"]),
    "one pass of several pairs": (
        {"head_passes": "one_pass"},
        ConfigError,
        ["head_passes is one_pass", "one pair a call", "per_device_train_batch_size to 1"],
    ),
    "no room for the step": ({"rows": short(), "max_length": 3}, RowError, ["row 0", "max_length"]),
}


def stand_in(name: Any, model: Any) -> Any:
    if name == "itself":
        return model
    if name == "another":
        return tiny_model(seed=1)
    if name == "smaller vocabulary":
        return tiny_model(vocab_size=100, eos_token_id=1, pad_token_id=0)
    if name == "softcap":
        return tiny_model("gemma2")
    if name == "adapted":
        return get_peft_model(tiny_model(), LORA)
    return tiny_model().requires_grad_(False)


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_refused(case: str, tmp_path: Path) -> None:
    options, kind, words = copy.copy(REFUSED[case])
    options = dict(options)
    model = stand_in(options.pop("model"), None) if "model" in options else tiny_model()
    if "ref_model" in options:
        options["ref_model"] = stand_in(options["ref_model"], model)
    with pytest.raises(kind) as error:
        trainer(tmp_path, model, **options)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_plain_training_arguments_are_refused(tmp_path: Path) -> None:
    from transformers import TrainingArguments

    with pytest.raises(ConfigError, match="PreferenceConfig"):
        PreferenceTrainer(
            tiny_model(),
            args=TrainingArguments(output_dir=str(tmp_path)),  # type: ignore[arg-type]
            train_dataset=ROWS,
            processing_class=byte_tokenizer(),
        )


def test_a_folder_and_its_own_tokenizer(tmp_path: Path) -> None:
    from tests.train.trainer_cases import save_model

    folder = save_model(tmp_path / "model")
    trained = PreferenceTrainer(folder, args=config(tmp_path / "out"), train_dataset=ROWS)
    trained.train()
    trained.save_model()
    again = PreferenceTrainer(
        str(tmp_path / "out"), args=config(tmp_path / "x"), train_dataset=ROWS
    )
    for got, want in zip(again.model.parameters(), trained.model.parameters(), strict=True):
        assert torch.equal(got, want)


def test_own_collator_is_used(tmp_path: Path) -> None:
    class Counting(PairCollator):
        calls = 0

        def __call__(self, items: Any) -> Any:
            Counting.calls += 1
            batch = super().__call__(items)
            del batch["num_scored"], batch["text_tokens"], batch["num_tokens"]  # it need not count
            return batch

    PreferenceTrainer(
        tiny_model(),
        args=config(tmp_path, max_steps=2),
        data_collator=Counting(257),
        train_dataset=ROWS,
        processing_class=byte_tokenizer(),
    ).train()
    assert Counting.calls >= 2


WRONG_ARGUMENTS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "no model": ({"model": None}, ["model is None"]),
    "a layer": ({"model": torch.nn.Linear(2, 2)}, ["model is a Linear"]),
    "a number as reference": ({"ref_model": 3}, ["ref_model is a int", "name or folder"]),
    "a name as tokenizer": ({"processing_class": "x"}, ["processing_class", "AutoTokenizer"]),
    "a dict as adapter": ({"peft_config": {"r": 4}}, ["peft_config is a dict", "LoraConfig"]),
}


@pytest.mark.parametrize("case", WRONG_ARGUMENTS)
def test_wrong_arguments_are_named(case: str, tmp_path: Path) -> None:
    changes, words = WRONG_ARGUMENTS[case]
    arguments = {"model": tiny_model(), "processing_class": byte_tokenizer(), **changes}
    with pytest.raises((ConfigError, ModelError)) as error:
        PreferenceTrainer(args=config(tmp_path), train_dataset=ROWS, **arguments)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_evaluation_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS[:5]))
    made = trainer(tmp_path, eval_dataset={"a": ROWS[:5]})
    want = made.evaluate(ROWS[:5])["eval_loss"]
    assert made.evaluate(str(path))["eval_loss"] == want
    assert made.evaluate()["eval_a_loss"] == want
    assert made.evaluate({"b": str(path)})["eval_b_loss"] == want


def test_evaluation_without_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="eval_strategy"):
        trainer(tmp_path, eval_strategy="epoch")


def test_float16_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="float32 --fp16"):
        trainer(tmp_path, tiny_model().half())


MIXED = {"head": "lm_head", "norms": "model.norm", "a matrix": "model.layers.0.mlp.up_proj"}


@pytest.mark.parametrize("part", MIXED)
def test_dtypes_that_cannot_be_multiplied_are_refused(part: str, tmp_path: Path) -> None:
    """A part in float32 of a bfloat16 model, which then runs under autocast only."""

    def mixed() -> Any:
        model = tiny_model().to(torch.bfloat16)
        model.get_submodule(MIXED[part]).float()
        return model

    words = r"several dtypes.*bfloat16.*float32.*one dtype.*bf16: true"
    with pytest.raises(ModelError, match=words):
        trainer(tmp_path, mixed())
    with pytest.raises(ModelError, match=words):
        trainer(tmp_path, tiny_model(), ref_model=mixed())
    trained = trainer(tmp_path, mixed(), bf16=True, max_steps=1)
    trained.train()
    assert logs_of(trained)[0]["loss"] == pytest.approx(0.6931, abs=1e-3)
