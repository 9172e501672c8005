"""Cached reference log-probs: the same training, complete or refused, and resumable."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from prefkit.data.dataset import prepare_pairs
from prefkit.data.formats.detect import ReadOptions
from prefkit.data.pair import TokenizedPair
from prefkit.errors import ConfigError, PrefkitError
from prefkit.model.reference import logp_cache as reference_cache
from prefkit.model.reference.logp_cache import build_cache, fingerprint_model
from tests.train.trainer_cases import ROWS, byte_tokenizer, logs_of, tiny_model, trainer


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference_cache, "PAIRS_A_SHARD", 8)


PAIRS = prepare_pairs(ROWS, byte_tokenizer(), reading=ReadOptions(level="solution")).pairs


class Scorer:
    """Log-probs that tell which pair they belong to; counts pairs, can die on the way."""

    def __init__(self, dies_after: int | None = None) -> None:
        self.scored, self.dies_after = 0, dies_after

    def __call__(self, pairs: Sequence[TokenizedPair]) -> list[Any]:
        if self.dies_after is not None and self.scored >= self.dies_after:
            raise KeyboardInterrupt
        self.scored += len(pairs)
        return [tuple(self.side(side) for side in (p.chosen, p.rejected)) for p in pairs]

    @staticmethod
    def side(side: Any) -> torch.Tensor:
        return -torch.tensor(side.ids[1:][side.scored[1:]].astype("float32"))


def build(folder: Path, score: Any = None, model: str = "m", pairs: Any = PAIRS) -> Any:
    scorer = score or Scorer()
    return build_cache(folder, pairs, scorer, model_fingerprint=model, batch_size=3)


def check(cache: Any, pairs: Any = PAIRS) -> None:
    assert len(cache) == len(pairs)
    for index, pair in enumerate(pairs):
        for got, side in zip(cache[index], (pair.chosen, pair.rejected), strict=True):
            assert torch.equal(got, Scorer.side(side))


def test_every_token_comes_back_where_it_belongs(tmp_path: Path) -> None:
    check(build(tmp_path / "cache"))
    manifest = json.loads((tmp_path / "cache" / "manifest.json").read_text())
    assert manifest["complete"] is True
    shards = sorted((tmp_path / "cache").glob("*.safetensors"))
    assert len(shards) == len(PAIRS) / 8
    assert load_file(shards[0])["logp"].dtype == torch.float32


def test_a_second_run_scores_nothing(tmp_path: Path) -> None:
    build(tmp_path)
    again = Scorer()
    check(build(tmp_path, again))
    assert again.scored == 0


def test_an_interrupted_run_goes_on_shard_by_shard(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, Scorer(dies_after=12))
    assert json.loads((tmp_path / "manifest.json").read_text())["complete"] is False
    rest = Scorer()
    check(build(tmp_path, rest))
    assert rest.scored == len(PAIRS) - 8  # the first shard was whole


@pytest.mark.parametrize("damage", ["cut", "gone", "garbage", "of another shard"])
def test_a_damaged_shard_is_computed_anew(damage: str, tmp_path: Path) -> None:
    build(tmp_path)
    shard = tmp_path / "shard-00001.safetensors"
    if damage == "gone":
        shard.unlink()
    else:
        content = shard.read_bytes()
        other = (tmp_path / "shard-00002.safetensors").read_bytes()
        shard.write_bytes(
            {"cut": content[:-7], "garbage": b"x" * 50, "of another shard": other}[damage]
        )
    again = Scorer()
    check(build(tmp_path, again))
    assert again.scored == 8


def changed_pairs() -> Any:
    rows = [{**row, "chosen": row["chosen"] + "0"} for row in ROWS]
    return prepare_pairs(rows, byte_tokenizer(), reading=ReadOptions(level="solution")).pairs


@pytest.mark.parametrize("what", ["model", "rows", "manifest"])
def test_foreign_caches_are_refused(what: str, tmp_path: Path) -> None:
    build(tmp_path)
    if what == "manifest":
        (tmp_path / "manifest.json").unlink()
    options = {"model": "other"} if what == "model" else {}
    pairs = changed_pairs() if what == "rows" else PAIRS
    with pytest.raises(ConfigError, match="Delete the folder") as error:
        build(tmp_path, pairs=pairs, **options)
    assert {"model": "model", "rows": "rows", "manifest": "manifest"}[what] in str(error.value)


def test_infinite_log_probs_are_refused_with_the_row(tmp_path: Path) -> None:
    def broken(pairs: Any) -> Any:
        return [tuple(side / 0 for side in both) for both in Scorer()(pairs)]

    with pytest.raises(PrefkitError, match="row 0"):
        build(tmp_path, broken)
    assert not list(tmp_path.glob("*.safetensors"))


def test_model_fingerprint_sees_weights_and_config_not_names() -> None:
    one, two = tiny_model(), tiny_model()
    two.config._name_or_path = "/elsewhere"
    assert fingerprint_model(one) == fingerprint_model(two)
    with torch.no_grad():  # any one value, and any two that change places
        embeddings = two.get_input_embeddings().weight
        embeddings[37, 5] += 1e-3
        assert fingerprint_model(one) != fingerprint_model(two)
        embeddings.copy_(one.get_input_embeddings().weight)
        embeddings[[1, 2]] = embeddings[[2, 1]]
        assert fingerprint_model(one) != fingerprint_model(two)
        embeddings.copy_(one.get_input_embeddings().weight)
    assert fingerprint_model(one) == fingerprint_model(two)
    with torch.no_grad():
        two.lm_head.weight[0, 0] += 1e-3
    assert fingerprint_model(one) != fingerprint_model(two)
    assert fingerprint_model(tiny_model(rope_parameters={"rope_theta": 5e5})) != fingerprint_model(
        one
    )


@pytest.mark.parametrize("lora", [False, True])
def test_training_on_the_cache_equals_the_live_reference(lora: bool, tmp_path: Path) -> None:
    from peft import LoraConfig

    extra: dict[str, Any] = {"eval_dataset": ROWS[:6], "eval_strategy": "steps", "eval_steps": 2}
    if lora:
        extra["peft_config"] = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear")
    live = trainer(tmp_path / "live", tiny_model(scale=3.0), **extra)
    live.train()
    options = {**extra, "precompute_ref_log_probs": True}
    cached = trainer(tmp_path / "cached", tiny_model(scale=3.0), **options)
    assert lora == (cached.reference is not None)  # a copy of the model is not kept
    cached.train()
    for key in ("loss", "eval_loss"):
        for got, want in zip(logs_of(cached, key), logs_of(live, key), strict=True):
            for name in want:
                if "per_second" not in name and "runtime" not in name and "memory" not in name:
                    assert got[name] == pytest.approx(want[name], rel=1e-4, abs=1e-5), name
    assert (tmp_path / "cached" / "ref_cache" / "eval" / "manifest.json").is_file()


def test_another_reference_is_refused_by_the_trainer(tmp_path: Path) -> None:
    options: dict[str, Any] = {"precompute_ref_log_probs": True, "ref_cache_dir": str(tmp_path)}
    trainer(tmp_path / "a", **options)
    trainer(tmp_path / "a", **options)
    with pytest.raises(ConfigError, match="another reference model"):
        trainer(tmp_path / "a", tiny_model(seed=5), **options)
    with pytest.raises(ConfigError, match="other rows"):
        trainer(tmp_path / "a", rows=ROWS[:5], **options)
