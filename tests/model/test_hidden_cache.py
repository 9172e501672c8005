"""Cached hidden states: the same loss, complete or refused, resumable, and never all in memory."""

import json
import math
import pickle
import shutil
from collections import namedtuple
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from prefkit import TDPO, fused_preference_loss
from prefkit.data.batch.collators import PairCollator
from prefkit.data.dataset import prepare_pairs
from prefkit.data.formats.detect import ReadOptions
from prefkit.data.pair import TokenizedPair, TokenizedSide
from prefkit.errors import ConfigError, PrefkitError
from prefkit.model.head.fused import install
from prefkit.model.reference import hidden_cache
from prefkit.model.reference.head import ReferenceHead
from prefkit.model.reference.hidden_cache import HiddenCache, build_hidden_cache
from prefkit.model.reference.logp_cache import build_cache
from prefkit.model.reference.policy import Reference
from prefkit_kernels import TokenStats, token_stats
from tests.model.test_reference_cache import Scorer
from tests.train.trainer_cases import ROWS, byte_tokenizer, tiny_model
from tests.train.tree_cases import random_pairs

PAIRS = prepare_pairs(ROWS, byte_tokenizer(), reading=ReadOptions(level="solution")).pairs
WIDTH = 4


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hidden_cache, "BYTES_A_SHARD", 600)


class States:
    """States that tell which token they belong to; counts pairs, can die on the way."""

    def __init__(self, dies_after: int | None = None) -> None:
        self.done, self.dies_after = 0, dies_after

    def __call__(self, pairs: Sequence[TokenizedPair]) -> list[tuple[Tensor, Tensor]]:
        if self.dies_after is not None and self.done >= self.dies_after:
            raise KeyboardInterrupt
        self.done += len(pairs)
        return [(self.side(p.chosen), self.side(p.rejected)) for p in pairs]

    @staticmethod
    def side(side: TokenizedSide) -> Tensor:
        ids = torch.from_numpy(side.ids[1:][side.scored[1:]].astype(np.float32))
        return ids[:, None] + torch.arange(WIDTH) / WIDTH


def build(folder: Path, states: Any = None, pairs: Any = PAIRS, **changes: Any) -> HiddenCache:
    options: dict[str, Any] = {
        "width": WIDTH,
        "dtype": torch.float32,
        "model_fingerprint": "m",
        "batch_size": 3,
    }
    return build_hidden_cache(folder, pairs, states or States(), **{**options, **changes})


def read(cache: HiddenCache, pair_index: Tensor) -> Tensor:
    """(T, D) states of the scored tokens of some pairs, as a batch has them."""
    return cache.take(np.concatenate([cache.rows(index) for index in pair_index.tolist()]))


def check(cache: HiddenCache) -> None:
    assert len(cache) == len(PAIRS)
    for index, pair in enumerate(PAIRS):
        for got, side in zip(cache[index], (pair.chosen, pair.rejected), strict=True):
            assert torch.equal(got, States.side(side))


def test_every_token_comes_back_where_it_belongs(tmp_path: Path) -> None:
    cache = build(tmp_path / "cache")
    check(cache)
    check(pickle.loads(pickle.dumps(cache)))  # as for a data loader's workers
    manifest = json.loads((tmp_path / "cache" / "manifest.json").read_text())
    assert manifest["complete"] is True
    shards = sorted((tmp_path / "cache").glob("*.safetensors"))
    assert len(shards) == len(cache.first_pairs) > 3
    assert all(load_file(shard)["hidden"].numel() * 4 <= 600 for shard in shards)


def test_rows_of_a_batch_are_in_the_order_of_its_rows(tmp_path: Path) -> None:
    cache = build(tmp_path)
    for layout in ("padded", "shared", "separate"):
        collate = PairCollator(pad_token_id=257, layout=layout)  # type: ignore[arg-type]
        batch = collate([(index, PAIRS[index]) for index in (7, 0, 20)])
        got = read(cache, batch["pair_index"])
        assert torch.equal(got[:, 0], batch["targets"].float())
    assert cache.take(np.empty(0, dtype=np.int64)).shape == (0, WIDTH)
    with pytest.raises(IndexError):
        cache[len(PAIRS)]


def test_a_pair_larger_than_a_shard_has_one_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hidden_cache, "BYTES_A_SHARD", 1)
    cache = build(tmp_path)
    check(cache)
    assert cache.first_pairs == tuple(range(len(PAIRS)))


def test_a_second_run_computes_nothing(tmp_path: Path) -> None:
    build(tmp_path)
    again = States()
    check(build(tmp_path, again))
    assert again.done == 0


def test_a_killed_run_goes_on_shard_by_shard(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, States(dies_after=10))
    assert json.loads((tmp_path / "manifest.json").read_text())["complete"] is False
    whole = len(list(tmp_path.glob("shard-*.safetensors")))
    assert whole
    (tmp_path / f"shard-{whole:05d}.safetensors.tmp").write_bytes(b"half a sha")
    rest = States()
    cache = build(tmp_path, rest)
    check(cache)
    assert rest.done == len(PAIRS) - cache.first_pairs[whole]
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("damage", ["cut", "gone", "garbage", "of another shard", "other dtype"])
def test_a_damaged_shard_is_computed_anew(damage: str, tmp_path: Path) -> None:
    cache = build(tmp_path)
    shard = tmp_path / "shard-00001.safetensors"
    content = shard.read_bytes()
    other = (tmp_path / "shard-00002.safetensors").read_bytes()
    shard.unlink()
    if damage == "other dtype":
        origin = f"m:{cache.kept.fingerprint(PAIRS, cache.shards[1])}"
        rows = States.side(PAIRS[0].chosen).half()
        save_file({"hidden": rows}, shard, metadata={"origin": origin})
    elif damage != "gone":
        files = {"cut": content[:-7], "garbage": b"x" * 50, "of another shard": other}
        shard.write_bytes(files[damage])
    again = States()
    check(build(tmp_path, again))
    assert again.done == cache.first_pairs[2] - cache.first_pairs[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_fingerprint": "other"}, "another reference model"),
        ({"pairs": PAIRS[:5]}, "other rows"),
        ({"dtype": torch.bfloat16}, "another dtype"),
        ({"width": 8}, "another hidden size"),
    ],
)
def test_foreign_caches_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    build(tmp_path)
    with pytest.raises(ConfigError, match=f"{message}.*Delete the folder"):
        build(tmp_path, **change)


def test_a_cache_of_log_probabilities_is_none_of_hidden_states(tmp_path: Path) -> None:
    build(tmp_path / "a")
    with pytest.raises(ConfigError, match="of other values"):
        build_cache(tmp_path / "a", PAIRS, Scorer(), model_fingerprint="m", batch_size=3)
    build_cache(tmp_path / "b", PAIRS, Scorer(), model_fingerprint="m", batch_size=3)
    with pytest.raises(ConfigError, match="of other values"):
        build(tmp_path / "b")


def test_the_size_is_said_before_anything_is_computed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines: list[str] = []

    class Listening(States):
        def __call__(self, pairs: Sequence[TokenizedPair]) -> list[tuple[Tensor, Tensor]]:
            assert len(lines) == 1
            return super().__call__(pairs)

    build(tmp_path, Listening(), say=lines.append)
    tokens = sum(int(s.scored[1:].sum()) for p in PAIRS for s in (p.chosen, p.rejected))
    assert f"{tokens * 16 / 1000:.1f} KB ({tokens:,} scored tokens of 16 B)" in lines[0]
    assert "are free there" in lines[0]
    total = sum(len(s.ids) for p in PAIRS for s in (p.chosen, p.rejected))
    assert f"{total}/{total}" in capsys.readouterr().err  # the bar came to its end


def test_a_disk_that_is_too_small_is_refused_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, States(dies_after=10))
    there = sum(load_file(s)["hidden"].nbytes for s in tmp_path.glob("*.safetensors"))
    whole = sum(States.side(s).nbytes for p in PAIRS for s in (p.chosen, p.rejected))
    usage = namedtuple("usage", "total used free")
    for missing, fits in ((1, False), (0, True)):
        states = States()
        free = usage(10**12, 0, whole - there - missing)
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: free)
        if fits:
            check(build(tmp_path, states))
            continue
        with pytest.raises(ConfigError, match=r"precompute_ref_hidden.*free space.*ref_cache_dir"):
            build(tmp_path, states)
        assert states.done == 0


def test_states_that_are_not_finite_are_refused_with_the_row(tmp_path: Path) -> None:
    def large(pairs: Any) -> Any:  # finite, but not in fp16
        return [tuple(side * 1e6 for side in both) for both in States()(pairs)]

    with pytest.raises(PrefkitError, match=r"row 0: the reference model gives hidden states"):
        build(tmp_path, large, dtype=torch.float16)
    assert not list(tmp_path.glob("*.safetensors"))


def test_rows_too_many_are_refused(tmp_path: Path) -> None:
    def shifted(pairs: Any) -> Any:
        return [(a[1:], torch.cat([a[:1], b])) for a, b in States()(pairs)]

    with pytest.raises(ValueError, match="for a side of"):
        build(tmp_path, shifted)


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_reading_a_pair_reads_no_more_than_the_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """54 MB on disk in one shard: one pair's rows, and nothing behind them, come into memory."""
    monkeypatch.setattr(hidden_cache, "BYTES_A_SHARD", 1 << 30)
    width = 40_000

    def wide(pairs: Sequence[TokenizedPair]) -> list[tuple[Tensor, Tensor]]:
        return [
            (a[:, :1].expand(-1, width), b[:, :1].expand(-1, width)) for a, b in States()(pairs)
        ]

    cache = build(tmp_path, wide, width=width)
    size = (tmp_path / "shard-00000.safetensors").stat().st_size
    assert size > 50e6
    cache[0]
    before = resident()
    items = [cache[12] for _ in range(20)]
    assert resident() - before < 20 * sum(s.nbytes for s in items[0]) + 5e6 < size
    assert items[0][0].untyped_storage().nbytes() < size / 10  # no view of the file


def live_and_cached(tmp_path: Path, family: str, **changes: Any) -> tuple[Any, Any]:
    """Operands of the reference as it runs, and from its cache, of the same batch."""
    policy, model = tiny_model(family, scale=3.0), tiny_model(family, seed=1, scale=3.0, **changes)
    head, own = install(policy), install(model)
    reference, collate = Reference(model, own), PairCollator(pad_token_id=257)

    def compute(pairs: Sequence[TokenizedPair]) -> list[tuple[Tensor, Tensor]]:
        batch = collate(pairs)
        found = reference.operands(batch, batch["positions"], own.transform, own.vocab_size)
        sizes = torch.bincount(batch["segments"], minlength=2 * len(pairs)).tolist()
        assert found["ref_hidden"] is not None
        sides = found["ref_hidden"].split(sizes)
        return list(zip(sides[::2], sides[1::2], strict=True))

    cache = build(tmp_path, compute, width=16)
    batch = collate([(index, PAIRS[index]) for index in (3, 1)])
    live = reference.operands(batch, batch["positions"], head.transform, head.vocab_size - 2)
    kept = ReferenceHead.of(own, head.transform, head.vocab_size - 2)
    return live, kept.of_cached(read(cache, batch["pair_index"]))


@pytest.mark.parametrize(
    ("family", "changes"),
    [("llama", {}), ("cohere", {"logit_scale": 0.1}), ("gpt2", {})],
    ids=["llama", "another scale", "gpt2"],
)
def test_the_loss_sees_what_the_live_reference_gives(
    family: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    live, kept = live_and_cached(tmp_path, family, **changes)
    assert live.keys() == kept.keys()
    for name, want in live.items():
        if want is None:
            assert kept[name] is None
        else:  # computed in another batch: equal to rounding
            torch.testing.assert_close(kept[name], want, rtol=1e-5, atol=1e-5)
    assert kept["ref_weight"].shape[0] == 262
    assert not kept["ref_weight"].requires_grad
    hidden, weight = live["ref_hidden"] * 1.1, live["ref_weight"]
    places = torch.arange(len(hidden))
    losses = [
        fused_preference_loss(hidden, weight, places, places % 2, TDPO(beta=2.0), **terms).loss
        for terms in (live, kept)
    ]
    assert float((losses[0] - losses[1]).detach().abs()) < 1e-5
    assert abs(float(losses[0].detach()) - math.log(2)) > 1e-3


@pytest.mark.slow
def test_rounding_to_bfloat16_moves_each_kl_a_little(smollm2: Path) -> None:
    """What docs/long_context.md says of SmolLM2-135M; `-s` prints it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    text = Path(__file__).parents[2].joinpath("LICENSE").read_text()  # English that stays
    ids = AutoTokenizer.from_pretrained(smollm2)(text, return_tensors="pt").input_ids[:, :513]
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        ref_hidden = model.model(ids[:, :-1]).last_hidden_state[0]
        ref_weight = model.lm_head.weight.clone()
        for parameter in model.parameters():  # a policy some way from the reference
            noise = torch.randn(parameter.shape, generator=draw) * parameter.std()
            parameter.add_(noise, alpha=0.02)
        hidden = model.model(ids[:, :-1]).last_hidden_state[0]
    rounded = ref_hidden.bfloat16().float()

    def stats(*states: Tensor) -> TokenStats:
        """Of a policy's and a reference's hidden states; the policy's head goes with its own."""
        weight = ref_weight if states[0] is ref_hidden else model.lm_head.weight.detach()
        own = {"ref_hidden": states[1], "ref_weight": ref_weight}
        return token_stats(states[0], weight, ids[0, 1:], outputs=("kl", "ref_logp"), **own)

    with torch.autocast("cpu", torch.bfloat16):  # the head's product rounds them in any case
        assert torch.equal(stats(hidden, ref_hidden).kl, stats(hidden, rounded).kl)
    want, got, own = stats(hidden, ref_hidden), stats(hidden, rounded), stats(ref_hidden, rounded)
    assert want.kl is not None
    assert got.kl is not None
    assert own.kl is not None
    error = (got.kl - want.kl).abs()
    figures = {
        "mean KL": float(want.kl.mean()),
        "mean error of a KL": float(error.mean()),
        "largest error of a KL": float(error.max()),
        "error of their sum, relative": float(abs(got.kl.sum() / want.kl.sum() - 1)),
        "mean KL(reference ‖ rounded)": float(own.kl.mean()),
    }
    print(figures)
    assert 0.01 < figures["mean KL"] < 1
    assert figures["mean error of a KL"] < 0.02 * figures["mean KL"]
    assert figures["error of their sum, relative"] < 2e-3


# -- each token of a question once ----------------------------------------------------------------


def test_a_tree_cache_holds_each_token_once_and_reads_like_one_by_pairs(tmp_path: Path) -> None:
    """Whichever the folder holds is read as that, in any layout; what is computed later, too."""
    pairs = [pair for seed in range(6) for pair in random_pairs(seed)]
    pairs = [replace(p, question=None if p.question is None else p.question % 2) for p in pairs]
    by_pair = build(tmp_path / "pairs", pairs=pairs)
    once = build(tmp_path / "once", pairs=pairs, once=True)
    assert int(once.kept.firsts[-1]) < int(by_pair.kept.firsts[-1])
    for cache in (once, by_pair, pickle.loads(pickle.dumps(once))):
        for index, pair in enumerate(pairs):
            for got, side in zip(cache[index], (pair.chosen, pair.rejected), strict=True):
                assert torch.equal(got, States.side(side))
    again = States()
    assert build(tmp_path / "pairs", again, pairs, once=True).kept.local is None
    assert build(tmp_path / "once", again, pairs).kept.local is not None
    assert again.done == 0
    for folder in ("pairs", "once"):
        shard = sorted((tmp_path / folder).glob("*.safetensors"))[1]
        shard.unlink()
        build(tmp_path / folder, pairs=pairs, once=folder == "pairs")
        assert shard.exists()


def test_other_questions_are_another_cache(tmp_path: Path) -> None:
    """The same ids in trees of other pairs: rows would be mistaken for one another."""
    pairs = random_pairs(2)
    build(tmp_path, pairs=pairs, once=True)
    apart = [replace(pair, question=None) for pair in pairs]
    with pytest.raises(ConfigError, match=r"other rows.*Delete the folder"):
        build(tmp_path, pairs=apart, once=True)
    (tmp_path / "manifest.json").write_text(
        (tmp_path / "manifest.json").read_text().replace("by question", "by day")
    )
    with pytest.raises(ConfigError, match=r"Delete the folder"):
        build(tmp_path, pairs=pairs, once=True)
