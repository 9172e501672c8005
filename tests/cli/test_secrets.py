"""What a run is trusted with stands in no file that prefkit writes, and in no line of it."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from prefkit import PreferenceConfig, SupervisedConfig
from prefkit.cli.main import main
from prefkit.options.secrets import without_secrets
from tests.cli.test_cli import interrupt_after_step_3, world  # noqa: F401  # a fixture

_THEIRS = ("training_args.bin",)  # transformers' own, which holds everything of a run


def with_secrets(folder: Path, **more: Any) -> str:
    """The config of a run with secrets at both depths."""
    options = yaml.safe_load((folder / "run.yaml").read_text())
    secrets = {"hub_token": "hf_first", "model_init_kwargs": {"token": "hf_second"}}
    file = folder / "secret.yaml"
    file.write_text(yaml.safe_dump(options | secrets | {"save_steps": 2} | more))
    return str(file)


def files_with(words: str, folder: Path) -> list[str]:
    found = [one for one in folder.rglob("*") if one.is_file() and one.name not in _THEIRS]
    assert {"README.md", "prefkit_config.yaml", "trainer_state.json"} <= {one.name for one in found}
    return [str(one) for one in found if words.encode() in one.read_bytes()]


def test_a_run_writes_no_secret_and_goes_on_without_it(world: Path, capsys: Any) -> None:  # noqa: F811
    config = with_secrets(world)
    assert main(["train", config]) == 0
    assert (world / "out" / "checkpoint-2").is_dir()
    assert files_with("hf_", world / "out") == []
    for name in ("README.md", "prefkit_config.yaml"):
        text = (world / "out" / name).read_text()
        assert "Secrets are not written down: hub_token, model_init_kwargs.token. Give" in text
    kept = yaml.safe_load((world / "out" / "prefkit_config.yaml").read_text())
    assert kept["max_steps"] == 4
    assert "model_init_kwargs" not in kept  # nothing else was in it
    # The same run for who gives them again, for who does not, and for who has new ones.
    kept = str(world / "out" / "prefkit_config.yaml")
    new = ["--model_init_kwargs", '{"token": "hf_third"}', "--hub_token", "hf_fourth"]
    for more in ([config], [kept], [kept, *new]):
        assert main(["train", *more, "--resume_from_checkpoint", "auto"]) == 0
        printed = capsys.readouterr()
        assert "hf_" not in printed.out + printed.err
        assert "Changed since" not in printed.err
    assert files_with("hf_", world / "out") == []


def test_a_run_begun_by_a_version_that_kept_them_goes_on(world: Path, capsys: Any) -> None:  # noqa: F811
    assert main(["train", with_secrets(world)]) == 0
    kept = world / "out" / "prefkit_config.yaml"
    kept.write_text(kept.read_text() + "hub_token: hf_first\n")
    config = with_secrets(world, hub_token="hf_other")
    assert main(["train", config, "--resume_from_checkpoint", "auto"]) == 0
    assert "hf_" not in capsys.readouterr().err
    assert files_with("hf_", world / "out") == []


def test_the_command_to_go_on_shows_none(
    world: Path,  # noqa: F811
    capsys: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    interrupt_after_step_3(monkeypatch)
    flags = ["--hub_token", "hf_first", "--model_init_kwargs", '{"token": "hf_second"}']
    assert main(["train", str(world / "run.yaml"), *flags, "--save_steps", "2"]) == 130
    shown = capsys.readouterr().err
    assert "--save_steps 2 --resume_from_checkpoint auto" in shown
    assert "--hub_token '…' --model_init_kwargs '…'" in shown
    assert "hf_" not in shown


def test_no_config_shows_a_secret(tmp_path: Path) -> None:
    secrets: dict[str, Any] = {"hub_token": "hf_1", "model_init_kwargs": {"token": "hf_2"}}
    for config in (PreferenceConfig(tmp_path, **secrets), SupervisedConfig(tmp_path, **secrets)):
        for shown in (str(config), repr(config), f"{config.to_dict()}"):
            assert "hf_" not in shown
            assert "learning_rate" in shown


def test_a_secret_in_a_list_is_left_out() -> None:
    kept, names = without_secrets({"x": [{"token": "S", "a": 1}, 2], "y": [1]})
    assert (kept, names) == ({"x": [{"a": 1}, 2], "y": [1]}, ["x[0].token"])
