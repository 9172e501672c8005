"""`prefkit convert`, and other trainers' configs given to train, inspect and plan."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from prefkit.cli.main import main
from prefkit.cli.train import load_options
from prefkit.demo.run import MODEL, PAIRS

RUN = {"max_steps": 2, "logging_steps": 1, "learning_rate": 1e-3}


def pairs() -> list[dict[str, Any]]:
    """Whole solutions of the demo's problems."""
    lines = PAIRS.read_text().splitlines()[:6]
    rows = [json.loads(line) for line in lines]
    return [
        {"prompt": row["prompt"], "chosen": row["full_chosen"], "rejected": row["full_rejected"]}
        for row in rows
    ]


def save(path: Path, content: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content) if path.suffix == ".yaml" else json.dumps(content))
    return str(path)


def of_trl() -> dict[str, Any]:
    """A folder of files by split, in TRL's layout."""
    save(Path("rows/train.json"), pairs())
    save(Path("rows/test.json"), pairs()[:2])
    evaluation = {"eval_strategy": "steps", "eval_steps": 1}
    return {
        **{"model_name_or_path": str(MODEL), "dataset_name": "rows", "output_dir": "out"},
        **{**RUN, **evaluation, "bf16": False, "loss_type": ["ipo"], "dataset_num_proc": 2},
    }


def of_llamafactory() -> dict[str, Any]:
    """ShareGPT rows that dataset_info.json describes."""
    rows = [
        {
            "conversations": [{"from": "human", "value": row["prompt"]}],
            "chosen": {"from": "gpt", "value": row["chosen"]},
            "rejected": {"from": "gpt", "value": row["rejected"]},
        }
        for row in pairs()
    ]
    save(Path("data/sums.json"), rows)
    described = {"file_name": "sums.json", "formatting": "sharegpt", "ranking": True}
    columns = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}
    save(Path("data/dataset_info.json"), {"sums": {**described, "columns": columns}})
    return {
        **{"model_name_or_path": str(MODEL), "stage": "dpo", "do_train": True, "dataset": "sums"},
        **{"finetuning_type": "full", "pref_loss": "simpo", "output_dir": "out", **RUN},
    }


def of_axolotl() -> dict[str, Any]:
    """Rows whose question has another name."""
    rows = [
        {"question": row["prompt"], "chosen": row["chosen"], "rejected": row["rejected"]}
        for row in pairs()
    ]
    save(Path("orca.json"), rows)
    datasets = [
        {"path": "orca.json", "type": "chat_template.default", "field_messages": "question"}
    ]
    return {
        **{"base_model": str(MODEL), "rl": "dpo", "datasets": datasets, "bf16": False, **RUN},
        **{"micro_batch_size": 2, "num_epochs": 1, "output_dir": "out", "wandb_project": None},
    }


CONFIGS = {"trl": of_trl, "llamafactory": of_llamafactory, "axolotl": of_axolotl}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("trainer", CONFIGS)
def test_a_converted_config_trains(trainer: str, here: Path, capsys: Any) -> None:
    config = save(here / "theirs.yaml", CONFIGS[trainer]())
    assert main(["convert", config, "--out", "ours.yaml"]) == 0
    shown = capsys.readouterr().out
    assert ", told by " in shown
    assert "Written to ours.yaml" in shown
    assert max(map(len, (here / "ours.yaml").read_text().splitlines())) <= 100
    assert main(["train", "ours.yaml"]) == 0
    state = json.loads((here / "out" / "trainer_state.json").read_text())
    assert state["global_step"] == 2
    assert "6 pairs" in capsys.readouterr().err


@pytest.mark.parametrize("trainer", CONFIGS)
def test_a_config_of_another_trainer_is_translated_while_it_is_read(
    trainer: str, here: Path, capsys: Any
) -> None:
    """The options are those of the converted file, and a flag wins over them."""
    config = save(here / "theirs.yaml", CONFIGS[trainer]())
    assert main(["convert", config]) == 0
    assert load_options([config]).given == load_options(["prefkit.yaml"]).given
    assert load_options([config, "--beta", "0.3"]).config.beta == 0.3
    assert "is a config of" in capsys.readouterr().err


def test_train_says_what_it_translated_and_keeps_prefkits_config(here: Path, capsys: Any) -> None:
    config = save(here / "trl.yaml", of_trl())
    assert main(["train", config]) == 0
    said = " ".join(capsys.readouterr().err.split())  # as lines break by the folder's length
    assert "trl.yaml is a config of TRL" in said
    assert "of TRL's defaults are kept; left out: dataset_num_proc." in said
    kept = yaml.safe_load((here / "out" / "prefkit_config.yaml").read_text())
    assert kept["model"] == str(MODEL)
    assert kept["loss_type"] == "ipo"
    assert kept["max_length"] == 1024
    assert "link" not in kept


def test_inspect_and_plan_read_it_too(here: Path, capsys: Any) -> None:
    config = save(here / "trl.yaml", of_trl())
    assert main(["inspect", config, "--limit", "1"]) == 0
    assert "pair 0" in capsys.readouterr().out
    assert main(["plan", config, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)


def test_what_is_refused_stops_and_names_the_way_on(here: Path, capsys: Any) -> None:
    config = save(here / "trl.yaml", of_trl() | {"max_prompt_length": 5})
    assert main(["train", config]) == 2
    said = capsys.readouterr().err
    assert "max_prompt_length: 5: prefkit never cuts prompts" in said
    assert f"prefkit convert {config} --skip-refused" in said
    assert main(["convert", config]) == 1
    assert "Nothing is written" in capsys.readouterr().out
    assert not (here / "prefkit.yaml").exists()
    assert main(["convert", config, "--skip-refused"]) == 0
    text = (here / "prefkit.yaml").read_text()
    assert "# max_prompt_length: 5: prefkit never cuts prompts." in text
    assert load_options(["prefkit.yaml"]).config.max_length == 1024


def test_another_loss_is_not_left_out(here: Path, capsys: Any) -> None:
    config = save(here / "lf.yaml", of_llamafactory() | {"pref_loss": "kto_pair"})
    assert main(["convert", config, "--skip-refused"]) == 1
    assert "another loss, and another run" in capsys.readouterr().out
    assert not (here / "prefkit.yaml").exists()


def test_a_file_that_is_there_is_kept(here: Path, capsys: Any) -> None:
    config = save(here / "trl.yaml", of_trl())
    (here / "prefkit.yaml").write_text("mine: 1\n")
    assert main(["convert", config]) == 2
    assert "prefkit.yaml is there already" in capsys.readouterr().err
    assert (here / "prefkit.yaml").read_text() == "mine: 1\n"
    assert main(["convert", config, "--force"]) == 0
    assert "mine" not in (here / "prefkit.yaml").read_text()
    assert main(["convert", config, "--out", "no/such/folder.yaml"]) == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "flags", "words"),
    [
        ({"model": "m", "train_data": "d"}, [], "is a config of prefkit: it has model, train_data"),
        ({"learning_rate": 1e-6}, [], "do not say whose config it is. Say it: --from trl"),
        ({"rl": "grpo", "base_model": "m"}, [], "rl is 'grpo'"),
        ({"learning_rate": 1e-6}, ["--from", "nobody"], "must be one of: trl, llamafactory"),
        ({"model": "m", "torch_dtype": "auto"}, None, "It is TRL's name. Use dtype."),
        ({"train_data": "d", "model_name_or_path": "m"}, None, "It is TRL's name. Use model."),
        ({"model": "m", "rpo_alpha": 1}, None, "Use nll_weight"),
    ],
)
def test_mistakes(content: dict, flags: Any, words: str, here: Path, capsys: Any) -> None:
    config = save(here / "run.yaml", content)
    assert main(["train", config] if flags is None else ["convert", config, *flags]) == 2
    assert words in capsys.readouterr().err


def test_the_trainer_may_be_named(here: Path, capsys: Any) -> None:
    config = save(here / "run.yaml", {"model_name_or_path": "m", "learning_rate": 1e-5})
    assert main(["convert", config]) == 2
    assert main(["convert", config, "--from", "trl"]) == 0
    assert "run.yaml: TRL 1.16\n" in capsys.readouterr().out
    assert yaml.safe_load((here / "prefkit.yaml").read_text())["beta"] == 0.1
    assert main(["convert"]) == 2


def test_secrets_are_not_shown(here: Path, capsys: Any) -> None:
    secrets: dict[str, Any] = {"hub_token": "hf_secret", "my_api_key": "hf_secret"}
    secrets |= {"strange_kwargs": {"token": "hf_secret"}}
    config = save(here / "trl.yaml", of_trl() | secrets)
    assert main(["convert", config, "--skip-refused"]) == 0
    assert "hf_secret" not in capsys.readouterr().out
    shown = [line for line in Path("prefkit.yaml").read_text().splitlines() if "hf_" in line]
    assert shown == ["hub_token: hf_secret"]  # which the run needs


def test_what_is_still_missing_is_said(here: Path, capsys: Any) -> None:
    """Where the key that named the rows was left out, the written file cannot train yet."""
    content = {key: value for key, value in of_trl().items() if key != "dataset_name"}
    config = save(here / "trl.yaml", content | {"dataset_mixer": {"some/rows": 1.0}})
    assert main(["convert", config, "--skip-refused"]) == 0
    assert "Before it can train, write into it: train_data." in capsys.readouterr().out


def test_a_file_that_is_not_there_is_said_before_the_one_that_is(here: Path, capsys: Any) -> None:
    (here / "prefkit.yaml").write_text("mine: 1\n")
    assert main(["convert", "nowhere.yaml"]) == 2
    assert "nowhere.yaml: there is no such file" in capsys.readouterr().err
