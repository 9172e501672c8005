"""Two gloo processes under DDP: the numbers are TRL's, those of evaluations included."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.integrations.trl import ddp_work
from tests.torchrun import launched_once

_OF_TIME = ("runtime", "per_second")


@pytest.fixture(scope="session")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Case → (ours, theirs), from one launch."""
    folder = launched_once(tmp_path_factory, 2, Path(ddp_work.__file__))
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize("name", [*ddp_work.CASES, *ddp_work.STREAMS])
def test_two_processes_give_trls_numbers(name: str, found: Any) -> None:
    got, want = found[name]
    assert len(got["logs"]) == len(want["logs"]) >= 3
    for step, (mine, other) in enumerate(zip(got["logs"], want["logs"], strict=True)):
        assert mine.keys() == other.keys()
        rel = 3e-4 if step else 1e-5  # Adam amplifies rounding
        for key, value in other.items():
            if not key.endswith(_OF_TIME):
                assert mine[key] == pytest.approx(value, rel=rel, abs=3 * rel), (step, key)
    assert got["weights"] == pytest.approx(want["weights"], rel=1e-3, abs=3e-4)


@pytest.mark.parametrize(
    ("name", "shared"),
    [
        ("full", [True, True]),
        ("streamed", [False, False]),
        ("streamed later", [True, False]),
        ("shards of their own", [True, True]),
    ],
)
def test_rows_without_padding_beside_streams(name: str, shared: list[bool], found: Any) -> None:
    """What one process reads for both is cut along TRL's rows."""
    assert found[name][0]["shared"] == shared


@pytest.mark.parametrize("method", ddp_work.SHARDED)
def test_models_that_fsdp2_has_sharded(method: str, found: Any) -> None:
    """The head is gathered where the loss reads it, the reference's until the KL has read it."""
    (loss, grads), (want, expected) = found[method]["sharded"], found[method]["whole"]
    assert loss == pytest.approx(want, rel=1e-6)
    assert grads == pytest.approx(expected, rel=1e-4, abs=1e-7)
