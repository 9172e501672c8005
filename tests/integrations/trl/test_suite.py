"""The harness of TRL's own tests; and, where PREFKIT_TRL_TESTS names its repository, some of them.

All of them: `python -m benchmarks.trl_suite`.
"""

import subprocess
from pathlib import Path

import pytest

pytest.importorskip("trl", reason="TRL is not installed")

from benchmarks.trl_suite import source
from benchmarks.trl_suite.running import (
    PREFKIT,
    TRL,
    Outcome,
    differences,
    run,
    share,
)

# One test of each kind: losses, adapters, precomputed references, evaluation, tools, streams.
SOME = " or ".join(
    (
        "test_train_model",
        "ipo",
        "test_train_with_wpo",
        "test_train_dense_with_peft_config_lora",
        "test_evaluate_precompute_ref_log_probs_after_training_raises",
        "test_train_with_compute_metrics",
        "test_train_toolcall_data",
        "test_train_with_iterable_dataset",
    )
)
TESTS = """
from datasets import load_dataset
from trl import DPOConfig, DPOTrainer


class TestOurs:
    def test_trains(self, tmp_path):
        rows = load_dataset("trl-internal-testing/zen", "standard_preference", split="train")
        args = DPOConfig(str(tmp_path), max_steps=1, use_cpu=True, report_to="none")
        name = "trl-internal-testing/tiny-Qwen2ForCausalLM-2.5"
        trainer = DPOTrainer(model=name, args=args, train_dataset=rows)
        trainer.train()
        assert trainer.prefkit_fallback is None

    def test_fails(self):
        assert False, "of course"
"""


@pytest.fixture
def repository(tmp_path: Path) -> str:
    """A bare repository with tests of our own, which pass with prefkit's trainer alone."""
    work = tmp_path / "work"
    (work / "tests").mkdir(parents=True)
    for name in source.FILES:
        (work / "tests" / name).write_text(TESTS if name == source.FILES[-1] else "")
    given = ["-c", "user.name=t", "-c", "user.email=t@t"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "tests"]):
        subprocess.run(["git", "-C", str(work), *given, *command], check=True)
    bare = tmp_path / "bare"
    subprocess.run(["git", "clone", "-q", "--bare", str(work), str(bare)], check=True)
    return str(bare)


@pytest.mark.slow
def test_the_harness(repository: str) -> None:
    ours, theirs = (run(trainer, repository) for trainer in (PREFKIT, TRL))
    assert ours["TestOurs::test_trains"] == Outcome("passed")
    assert ours["TestOurs::test_fails"].outcome == "failed"
    assert "of course" in ours["TestOurs::test_fails"].said
    assert "prefkit_fallback" in theirs["TestOurs::test_trains"].said
    assert [line.split(":")[2] for line in differences(theirs, ours)] == ["test_trains"]
    assert share(ours, theirs) == (0, 1)


def test_a_repository_without_the_tests(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no tests/__init__.py at HEAD"):
        source.put_tests(str(tmp_path), tmp_path / "out")


@pytest.mark.slow
def test_some_of_trls_own_tests() -> None:
    given = source.given()
    if given is None:
        pytest.skip(f"needs TRL's tests: set {source.VARIABLE} to a checkout or bare repository")
    theirs, ours = (run(trainer, given, SOME) for trainer in (TRL, PREFKIT))
    passed, of = share(theirs, ours)
    assert of >= 8
    assert passed == of, "\n".join(differences(theirs, ours))
