"""Adapters as what goes on training and as references; DoRA and its like; all beside TRL."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from prefkit.cli.main import main
from prefkit.errors import ConfigError, ModelError
from prefkit.model.adapters import REFERENCE
from prefkit.train.checkpointing import checkpoint
from tests.cli.test_cli import write_rows
from tests.model.test_adapters import skip_in_old_peft
from tests.train.trainer_cases import ROWS, logs_of, save_model, tiny_model, trainer

QV: dict[str, Any] = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj"], "r": 4}
KINDS: dict[str, dict[str, Any]] = {
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "embeddings": {"modules_to_save": ["embed_tokens"]},
    "head": {"modules_to_save": ["lm_head"]},
    "parameters": {"target_parameters": ["mlp.down_proj.weight"]},
}


def lora(**changes: Any) -> LoraConfig:
    return LoraConfig(**{**QV, **changes})


def base_folder(folder: Path) -> str:
    """A model whose distributions are far from uniform."""
    return save_model(folder, scale=3.0)


def trained_adapter(folder: Path, base: str, seed: int = 5, **changes: Any) -> str:
    """The folder of an adapter that changes the model much, as fine-tuning would."""
    model = get_peft_model(load(base), lora(**changes))
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return str(folder)


def load(base: str) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)


def merged(base: str, adapter: str) -> Any:
    return PeftModel.from_pretrained(load(base), adapter).merge_and_unload()


def first_and_last(run: Any) -> list[dict[str, float]]:
    run.train()
    logs = logs_of(run)
    return [logs[0], logs[-1]]


def assert_near(got: Any, want: Any) -> None:
    for mine, theirs in zip(got, want, strict=True):
        for name in ("loss", "rewards/margins", "logps/chosen", "grad_norm"):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-5), name


# -- the adapter that goes on training -------------------------------------------------------------


@pytest.mark.parametrize("kind", [{}, *KINDS.values()], ids=["lora", *KINDS])
def test_an_adapter_goes_on_against_itself_as_in_trl(kind: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("trl", reason="trl is the one to compare with")
    from tests.train.test_trainer_trl import compare, train_with_trl

    skip_in_old_peft("target_parameters" in kind)
    base = base_folder(tmp_path / "base")
    folder = trained_adapter(tmp_path / "adapter", base, **kind)
    ours = trainer(tmp_path / "ours", folder, log_entropy=True)
    ours.train()
    assert ours.reference.adapter == REFERENCE
    theirs = PeftModel.from_pretrained(load(base), folder, is_trainable=True)
    compare(ours, train_with_trl(tmp_path / "trl", "", theirs))


@pytest.mark.parametrize("method", ["dpo", "tdpo2"])
def test_the_reference_is_the_merged_model(method: str, tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base")
    folder = trained_adapter(tmp_path / "adapter", base, modules_to_save=["lm_head"])
    got = first_and_last(trainer(tmp_path / "one", folder, method=method))
    other = merged(base, folder)
    want = first_and_last(trainer(tmp_path / "two", folder, method=method, ref_model=other))
    assert_near(got, want)
    assert got[0]["loss"] == pytest.approx(0.693147, abs=1e-5)  # ln 2 nats: it is the policy
    assert got[1]["loss"] != pytest.approx(0.693147, abs=1e-2)


CACHES: dict[str, dict[str, Any]] = {
    "log-probabilities": {"precompute_ref_log_probs": True},
    "hidden states": {"method": "tdpo2", "precompute_ref_hidden": True},
}


@pytest.mark.parametrize("other", [False, True], ids=["its own", "another's"])
@pytest.mark.parametrize("cache", CACHES)
def test_a_cached_reference_is_that_of_the_adapter(cache: str, other: bool, tmp_path: Path) -> None:
    """With its own head, too, as it was before training."""
    base = base_folder(tmp_path / "base")
    folder = trained_adapter(tmp_path / "adapter", base, modules_to_save=["lm_head"])
    reference = trained_adapter(tmp_path / "b", base, seed=6, modules_to_save=["lm_head"])
    options: dict[str, Any] = {"ref_model": reference} if other else {}
    options |= {"method": CACHES[cache].get("method", "dpo")}
    got = first_and_last(trainer(tmp_path / "one", folder, **{**options, **CACHES[cache]}))
    assert_near(got, first_and_last(trainer(tmp_path / "two", folder, **options)))


@pytest.mark.parametrize("kind", [{}, *KINDS.values()], ids=["lora", *KINDS])
def test_a_fresh_adapter_trains_as_in_trl(kind: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("trl", reason="trl is the one to compare with")
    from tests.train.test_trainer_trl import compare, train_with_trl

    options: dict[str, Any] = {"peft_config": lora(**kind), "log_entropy": True}
    ours = trainer(tmp_path / "ours", tiny_model(scale=3.0), **options)
    ours.train()
    assert ours.reference.adapter is None
    own = {"peft_config": lora(**kind)}
    compare(ours, train_with_trl(tmp_path / "trl", "", tiny_model(scale=3.0), **own))


def test_only_the_trained_adapter_is_saved(tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base")
    folder = trained_adapter(tmp_path / "adapter", base)
    run = trainer(tmp_path / "out", folder, save_strategy="steps", save_steps=2)
    run.train()
    run.save_model()
    for place in (tmp_path / "out", tmp_path / "out" / "checkpoint-4"):
        weights = load_file(place / "adapter_model.safetensors")
        assert not any(REFERENCE in name for name in weights)
        assert weights.keys() == load_file(Path(folder) / "adapter_model.safetensors").keys()
        assert not list(place.rglob(f"*{REFERENCE}*"))
    loaded = PeftModel.from_pretrained(load(base), str(tmp_path / "out"))
    ids = torch.tensor([[5, 9, 200, 31]])
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, run.model.eval()(ids).logits)


def test_resume_is_exact(tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base")
    folder = trained_adapter(tmp_path / "adapter", base, lora_dropout=0.2)
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "max_steps": 6}
    whole = trainer(tmp_path / "out", folder, **options)
    whole.train()
    checkpoint.delete(tmp_path / "out" / "checkpoint-6")
    again = trainer(tmp_path / "out", folder, **options)
    again.train(resume_from_checkpoint="auto")
    for (name, one), two in zip(
        again.model.named_parameters(), whole.model.parameters(), strict=True
    ):
        assert torch.equal(one, two), name
        assert one.requires_grad == two.requires_grad
    assert logs_of(again)[-1]["loss"] == logs_of(whole)[-1]["loss"]


def test_another_adapter_to_start_from_is_noticed(tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base")
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2}
    trainer(tmp_path / "out", trained_adapter(tmp_path / "a", base), **options).train()
    checkpoint.delete(tmp_path / "out" / "checkpoint-4")
    other = trainer(tmp_path / "out", trained_adapter(tmp_path / "b", base, seed=6), **options)
    with pytest.raises(ModelError, match="another reference"):
        other.train(resume_from_checkpoint=True)


def test_a_second_trainer_starts_from_the_model_as_it_is(tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base")
    folder = trained_adapter(tmp_path / "adapter", base)
    first = trainer(tmp_path / "one", folder)
    first.train()
    second = trainer(tmp_path / "two", first.model)
    second.train()
    assert logs_of(second)[0]["loss"] == pytest.approx(0.693147, abs=1e-5)


# -- references by name ----------------------------------------------------------------------------


def test_an_adapter_as_reference_lies_beside_the_policys(tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base")
    folder = trained_adapter(tmp_path / "adapter", base, modules_to_save=["embed_tokens"])
    fresh = {"peft_config": lora(target_modules=["o_proj"])}
    one = trainer(tmp_path / "one", base, ref_model=folder, **fresh)
    assert one.reference.model is one.model
    got = first_and_last(one)
    want = first_and_last(trainer(tmp_path / "two", base, ref_model=merged(base, folder), **fresh))
    assert_near(got, want)
    assert got[0]["loss"] != pytest.approx(0.693147, abs=1e-3)


def test_an_adapter_of_another_copy_is_a_model_of_its_own(tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base")
    folder = trained_adapter(tmp_path / "adapter", base)
    shutil.copytree(base, tmp_path / "same")
    one = trainer(tmp_path / "one", str(tmp_path / "same"), ref_model=folder)
    assert one.reference.model is not one.model
    got = first_and_last(one)
    want = first_and_last(trainer(tmp_path / "two", base, ref_model=merged(base, folder)))
    assert_near(got, want)


def test_the_base_as_reference_of_a_trained_adapter(tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base")
    folder = trained_adapter(tmp_path / "adapter", base)
    one = trainer(tmp_path / "one", folder, ref_model=base)
    assert one.reference.model is one.model
    assert one.reference.adapter is None
    got = first_and_last(one)
    want = first_and_last(trainer(tmp_path / "two", folder, ref_model=tiny_model(scale=3.0)))
    assert_near(got, want)


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = base_folder(tmp_path / "base")
    folder = trained_adapter(tmp_path / "adapter", base)
    rows = write_rows(tmp_path / "rows.jsonl", ROWS)
    options = {"model": folder, "train_data": rows, "output_dir": str(tmp_path / "out")}
    options |= {"max_steps": "2", "logging_steps": "1", "disable_tqdm": "true"}
    (tmp_path / "run.yaml").write_text("".join(f"{k}: {v}\n" for k, v in options.items()))
    assert main(["inspect", str(tmp_path / "run.yaml"), "--limit", "1"]) == 0
    assert main(["train", str(tmp_path / "run.yaml")]) == 0
    told = capsys.readouterr()
    assert "Reference  the adapter as it is now, kept beside" in told.err
    assert "0.6931" in told.out
    other = ["--ref_model", base, "--output_dir", str(tmp_path / "other")]
    assert main(["train", str(tmp_path / "run.yaml"), *other]) == 0
    assert "Reference  the model with its adapter off" in capsys.readouterr().err
    assert main(["merge", str(tmp_path / "out"), "--out", str(tmp_path / "merged")]) == 0
    start = ["--model", str(tmp_path / "merged"), "--output_dir", str(tmp_path / "again")]
    assert main(["train", str(tmp_path / "run.yaml"), *start, "--use_dora", "true"]) == 2
    assert "use_dora has no effect without 'adapter: lora'" in capsys.readouterr().err
    assert main(["train", str(tmp_path / "run.yaml"), *start, "--use_peft", "true"]) == 0


# -- what cannot be --------------------------------------------------------------------------------


def test_two_adapters_are_refused_before_loading(tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base")
    folder = trained_adapter(tmp_path / "adapter", base)
    (tmp_path / "base" / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="goes on training, and another one is asked for"):
        trainer(tmp_path, folder, peft_config=lora())


def test_several_adapters_in_use_are_refused(tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base")
    folder = trained_adapter(tmp_path / "adapter", base)
    model = PeftModel.from_pretrained(load(base), folder, is_trainable=True)
    model.load_adapter(folder, adapter_name="second", is_trainable=True)
    model.base_model.set_adapter(["default", "second"])
    with pytest.raises(ModelError, match="2 adapters in use"):
        trainer(tmp_path, model)
