"""Versions of TRL that were not tested are refused by name."""

import importlib.metadata
import logging
from pathlib import Path

import pytest

from prefkit.errors import ConfigError

pytest.importorskip("trl", reason="TRL is not installed")
from prefkit.integrations.trl.versions import TESTED, UNTESTED, check_version

PROJECT = Path(__file__).parents[3] / "pyproject.toml"


@pytest.mark.parametrize("version", ["1.9.0", "1.10.1", "1.14.2", "1.16.0", "1.16.1"])
def test_tested_versions(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    assert check_version() == version


@pytest.mark.parametrize("version", ["1.8.0", "1.17.0", "2.0.0"])
def test_other_versions(
    version: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    monkeypatch.delenv(UNTESTED, raising=False)
    with pytest.raises(ConfigError, match=f"TRL 1.9 to 1.16; installed is {version}"):
        check_version()
    monkeypatch.setenv(UNTESTED, "1")
    with caplog.at_level(logging.WARNING, logger="prefkit"):
        assert check_version() == version
    assert f"not with {version}" in caplog.text


def test_no_trl(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(ConfigError, match=r"no TRL is installed. Install it with pip install"):
        check_version()


def test_the_extra_asks_for_the_tested_versions() -> None:
    last = TESTED[-1].split(".")
    beyond = f"{last[0]}.{int(last[1]) + 1}"
    assert f'trl = ["trl>={TESTED[0]},<{beyond}"]' in PROJECT.read_text(encoding="utf-8")
