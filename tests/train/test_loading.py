"""Models that a trainer is given by name, and the options of the command line about them."""

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BitsAndBytesConfig

from prefkit import ConfigError, ModelError
from prefkit.cli.train import load_options
from prefkit.model import loading
from prefkit.train.launch import make_adapter, make_trainer
from tests.train.test_adapters import base_folder, trained_adapter
from tests.train.trainer_cases import config, logs_of, save_model, tiny_model, trainer


def options(folder: Path, **given: Any) -> Any:
    """The options of `prefkit train` on a tiny model."""
    model = given.pop("model", None) or save_model(folder / "model")
    words = {"model": model, "train_data": "rows.jsonl", "output_dir": str(folder / "out")}
    flags = [word for name, value in {**words, **given}.items() for word in (f"--{name}", value)]
    return load_options([*flags, "--max_steps", "1", "--disable_tqdm", "true"])


# -- model_init_kwargs -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16, "auto"])
def test_dtypes_by_name(dtype: Any, tmp_path: Path) -> None:
    tiny_model().to(torch.bfloat16).save_pretrained(tmp_path / "model")
    made = trainer(tmp_path, str(tmp_path / "model"), model_init_kwargs={"dtype": dtype})
    assert made.model.dtype == torch.bfloat16
    assert made.reference is not None
    assert made.reference.model.dtype == torch.bfloat16


def test_a_named_model_is_float32_unless_told(tmp_path: Path) -> None:
    tiny_model().to(torch.bfloat16).save_pretrained(tmp_path / "model")
    made = trainer(tmp_path, str(tmp_path / "model"), model_init_kwargs='{"use_cache": false}')
    assert made.model.dtype == torch.float32
    assert made.model.config.use_cache is False


WRONG: dict[str, tuple[Any, str]] = {
    "no mapping": (["bfloat16"], "model_init_kwargs is a list"),
    "no JSON": ("{dtype", "model_init_kwargs is no JSON"),
    "a dtype that is none": ({"dtype": "bf16"}, "the dtype 'bf16'; it must be one of: auto"),
    "a former name": ({"torch_dtype": "auto"}, "torch_dtype. It is called dtype now"),
    "code": ({"trust_remote_code": True}, "Set the option trust_remote_code itself"),
    "bits as a mapping": ({"quantization_config": {"load_in_4bit": True}}, "Use load_in_4bit"),
}


@pytest.mark.parametrize("case", WRONG)
def test_keywords_that_cannot_be_passed_on(case: str, tmp_path: Path) -> None:
    given, words = WRONG[case]
    with pytest.raises(ConfigError, match=words):
        config(tmp_path, model_init_kwargs=given)


def test_a_keyword_that_nobody_reads_is_one_line(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model")
    with pytest.raises(ModelError, match="unexpected keyword argument 'atn_implementation'"):
        trainer(tmp_path, model, model_init_kwargs={"atn_implementation": "sdpa"})


@pytest.mark.parametrize("name", ["model_init_kwargs", "quantization_config"])
def test_a_loaded_model_cannot_be_loaded_otherwise(name: str, tmp_path: Path) -> None:
    given: dict[str, Any] = {"model_init_kwargs": {"dtype": "auto"}}
    if name == "quantization_config":
        given = {name: BitsAndBytesConfig(load_in_8bit=True)}
    with pytest.raises(ConfigError, match=f"{name} says how a model is loaded"):
        trainer(tmp_path, tiny_model(), **given)


def test_the_command_line_reads_them_in_one_form(tmp_path: Path) -> None:
    found = options(tmp_path, model_init_kwargs='{"dtype": "bfloat16", "use_cache": false}')
    assert found.script.dtype == "bfloat16"
    assert found.config.model_init_kwargs == {"use_cache": False}
    assert found.given["dtype"] == "bfloat16"
    with pytest.raises(ConfigError, match="dtype is given twice"):
        options(tmp_path, model_init_kwargs='{"dtype": "auto"}', dtype="auto")
    with pytest.raises(ConfigError, match="dtype is 'bf16'; it must be one of"):
        options(tmp_path, model_init_kwargs='{"dtype": "bf16"}')


def test_a_revision_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders have none, and there is no Hub: what is asked for is what can be seen."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    asked: list[Any] = []
    for name in ("load_config", "load_tokenizer"):
        real = getattr(loading, name)

        def noting(*args: Any, real: Any = real, **more: Any) -> Any:
            asked.append(more.get("revision"))
            return real(*args, **more)

        monkeypatch.setattr(f"prefkit.train.launch.{name}", noting)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    found = options(tmp_path, revision="v2", train_data=str(tmp_path / "rows.jsonl"))
    made = make_trainer(found.script, found.config)
    assert asked == ["v2", "v2"]
    assert made.args.model_init_kwargs == {"dtype": "float32", "revision": "v2"}


# -- code of a repository's own --------------------------------------------------------------------

_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own_llama"

class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


def own_code(folder: Path) -> str:
    """A folder whose model is a class that comes with it."""
    import json

    save_model(folder)
    (folder / "own.py").write_text(_CODE)
    settings = json.loads((folder / "config.json").read_text())
    settings |= {"model_type": "own_llama", "architectures": ["OwnModel"]}
    settings["auto_map"] = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (folder / "config.json").write_text(json.dumps(settings))
    return str(folder)


def test_code_of_a_repository_runs_only_where_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    model = own_code(tmp_path / "own_code_model")
    with pytest.raises(ModelError, match="cannot be loaded"):
        trainer(tmp_path, model)
    with caplog.at_level(logging.WARNING, "prefkit.model.loading"):
        made = trainer(tmp_path, model, trust_remote_code=True, max_steps=1)
        made.train()
    assert type(made.model).__name__ == "OwnModel"
    (line,) = [one.message for one in caplog.records if "trust_remote_code" in one.message]
    assert model in line
    assert logs_of(made)[0]["loss"] == pytest.approx(0.693147, abs=1e-5)


# -- adapters --------------------------------------------------------------------------------------


def test_flags_are_those_of_trl(tmp_path: Path) -> None:
    trl = pytest.importorskip("trl", reason="trl is the one to compare with")
    given: dict[str, Any] = {
        "use_peft": True,
        "lora_r": 4,
        "lora_alpha": 12,
        "lora_dropout": 0.1,
        "lora_target_modules": ["q_proj", "v_proj"],
        "lora_target_parameters": ["mlp.down_proj.weight"],
        "lora_modules_to_save": ["embed_tokens"],
        "use_dora": True,
        "use_rslora": True,
    }
    theirs = trl.get_peft_config(trl.ModelConfig(**given))
    words: dict[str, Any] = {
        name: " ".join(value) if isinstance(value, list) else str(value)
        for name, value in given.items()
    }
    flags = [word for name, value in words.items() for word in (f"--{name}", *value.split())]
    model = save_model(tmp_path / "model")
    ours = load_options(["--model", model, "--train_data", "x.jsonl", *flags])
    assert ours.given["adapter"] == "lora"
    assert "use_peft" not in ours.given
    assert make_adapter(ours.script).to_dict() == theirs.to_dict()


NO_EFFECT = ("use_dora", "use_rslora", "lora_modules_to_save", "lora_target_parameters")


@pytest.mark.parametrize("name", NO_EFFECT)
def test_options_of_an_adapter_need_one(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{name} has no effect without 'adapter: lora'"):
        options(tmp_path, **{name: "true" if name.startswith("use") else "norm"})


def test_use_peft_and_no_adapter_is_no_sense(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="use_peft is true, but adapter is none"):
        options(tmp_path, use_peft="true", adapter="none")


def test_an_adapter_without_its_base_is_told_before_loading(tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base")
    folder = trained_adapter(tmp_path / "adapter", base)
    shutil.rmtree(base)
    with pytest.raises(ModelError, match=r"is an adapter of .*base, and there is no model"):
        loading.check_model_folder("model", folder, adapters=True)


def test_rows_of_an_adapter_are_read_by_its_bases_tokenizer(tmp_path: Path) -> None:
    base = base_folder(tmp_path / "base")
    folder = trained_adapter(tmp_path / "adapter", base)
    assert len(loading.load_tokenizer(folder)) == len(loading.load_tokenizer(base))
