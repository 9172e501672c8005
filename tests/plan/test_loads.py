"""Batches as `prefkit plan` counts them are those of the run: tokens, scored tokens, attention."""

import itertools
import json
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prefkit.cli.plan import plan_arguments
from prefkit.cli.train import load_options
from prefkit.data import PairCollator
from prefkit.data.batch.bundles import row_tokens
from prefkit.data.pair import TokenizedPair
from prefkit.errors import ConfigError
from prefkit.loss.objectives import METHODS
from prefkit.loss.passes import choose
from prefkit.loss.shared_tokens import Uses
from prefkit.plan.advice import advise
from prefkit.plan.costs.head import passes_of
from prefkit.plan.inputs.lengths import Lengths, data_lengths, given_lengths
from prefkit.plan.inputs.loads import Load, batches
from prefkit.plan.inputs.setting import read_setting
from prefkit.plan.inputs.shape import read_shape
from prefkit.plan.planner import Planner
from prefkit.plan.planning import Plan
from prefkit.plan.table import plan_table
from prefkit.train.rows.pairs import prepare_dataset
from tests.data.test_packing import tree_of_steps
from tests.plan.test_plan import planned
from tests.train.test_layout import pair
from tests.train.trainer_cases import CONFIGS, ROWS, byte_tokenizer, save_model, trainer

CONFIG = CONFIGS["llama"]()
LAYOUTS = ("tree", "shared", "separate", "padded")
STEPS = 5
QUESTIONS = [  # a right and a wrong step behind each of the right ones before
    {"prompt": f"{a}+{a}=", "prefix": " so" * k, "chosen": f" so{k}", "rejected": f" no{k}{a}"}
    for a in range(8)
    for k in range(STEPS)
]


def lengths_of(*pairs: TokenizedPair) -> Lengths:
    longest = max(len(side.ids) for one in pairs for side in (one.chosen, one.rejected))
    return Lengths(lambda: pairs, longest, len(pairs), "pairs of a test")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    save_model(folder / "model")
    byte_tokenizer().save_pretrained(folder / "model")
    lines = [json.dumps(row) for row in QUESTIONS]
    (folder / "pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


def words_of(folder: Path, **options: Any) -> list[str]:
    own = {"model": folder / "model", "train_data": folder / "pairs.jsonl"}
    own |= {"method": "step-dpo", "output_dir": folder / "out", **options}
    return [word for name, value in own.items() for word in (f"--{name}", str(value))]


def plan_of(folder: Path, gpu_memory: str | None = None, **options: Any) -> Plan:
    return plan_arguments({"gpu_memory": gpu_memory}, words_of(folder, **options))[0]


@dataclass(frozen=True)
class Counted:
    """What a plan counts for a run, and the batches that the run's own loader gives."""

    layout: str
    heaviest: Load
    mean: Load
    found: list[Load]


def counted(folder: Path, epochs: int = 1, **options: Any) -> Counted:
    run = trainer(folder / "run", rows=QUESTIONS, method="step-dpo", **options)
    found = [Load.of(batch) for _ in range(epochs) for batch in run.get_train_dataloader()]
    read = load_options(words_of(folder, **options))
    lengths = data_lengths(prepare_dataset(QUESTIONS, byte_tokenizer(), run.args, CONFIG, "train"))
    planner = Planner("tiny", CONFIG, lengths)
    setting = read_setting(read)
    layout = planner.layout(setting)
    assert layout == run.layout
    return Counted(layout, *planner.loads(setting), found)


# -- one batch -----------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_load_is_what_the_model_sees(layout: Any) -> None:
    """Attention is counted against a mask made of ancestors, token by token."""
    pairs = tree_of_steps(4, 3)
    batch = PairCollator(0, layout=layout)(pairs)
    load = Load.of(batch)
    assert load.tokens == batch["input_ids"].numel() == row_tokens(pairs, layout)
    assert load.full == sum(len(s.ids) for p in pairs for s in (p.chosen, p.rejected))
    assert load.pairs == len(pairs)
    assert load.by_token == ("token_index" in batch)
    seen = 0
    if layout == "padded":
        seen = load.rows * int(torch.ones(load.length, load.length).tril().sum())
    else:
        ends = batch["stream"].ends_of_tokens
        place = torch.arange(len(ends))
        seen = int(((place[:, None] >= place) & (place[:, None] < ends)).sum())
    assert load.attention == seen


def test_a_token_that_many_pairs_score_costs_the_head_once() -> None:
    """Rejected siblings of one chosen response: 1 + 3 responses are scored, not 3 + 3."""
    first = replace(pair(5, 0, (4, 6), 1), question=7)
    pairs = [first]
    for token in (201, 202):  # the first token of another rejected response
        ids = first.rejected.ids.copy()
        ids[5] = token
        pairs.append(replace(first, rejected=replace(first.rejected, ids=ids)))
    loads = {how: Load.of(PairCollator(0, layout=how)(pairs)) for how in ("tree", "shared")}  # type: ignore[arg-type]
    assert loads["shared"].scored == 3 * 4 + 3 * 6
    assert loads["tree"].scored == 4 + 3 * 6
    assert loads["tree"].by_token
    assert not loads["shared"].by_token


@pytest.mark.parametrize("by_token", [True, False])
@pytest.mark.parametrize("method", ["dpo", "dpop", "tdpo2"])
def test_passes_are_those_of_the_loss(method: str, by_token: bool, folder: Path) -> None:
    objective, shape = METHODS[method].build({"method": method}), read_shape("tiny", CONFIG)
    outputs = ("logp", "kl") if objective.needs_kl else ("logp",)
    uses = Uses(torch.arange(12).repeat(2), one_sided=True) if by_token else None
    targets = torch.zeros(12, dtype=torch.int64)
    for adapter, budget in itertools.product(("none", "lora"), (4000, 40000)):
        words = words_of(folder, method=method, adapter=adapter, memory_budget=budget, use_cpu=True)
        setting = read_setting(load_options(words))
        hidden = torch.zeros(12, shape.hidden, requires_grad=True)
        weight = torch.zeros(shape.vocab, shape.hidden, requires_grad=adapter == "none")
        options = {"outputs": outputs, "memory_budget": budget, "num_scored": 12}
        chosen = choose("auto", objective, 3, (hidden, weight, targets), options, None, uses)
        assert passes_of(shape, setting, 12, 3, by_token) == (chosen or "two_pass")


# -- the batches of an epoch ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"layout": "shared"},
        {"layout": "separate"},
        {"group_by": "none"},
        {"pad_to_multiple_of": 8, "data_seed": 5},
    ],
)
def test_a_plan_reads_the_rows_of_the_run(options: dict[str, Any], folder: Path) -> None:
    """Row by row: what the trainer's own loader gives, packed and collated."""
    c = counted(folder, tokens_per_batch=90, **options)
    assert c.heaviest.tokens == max(load.tokens for load in c.found)
    assert c.heaviest.scored == max((load.tokens, load.scored) for load in c.found)[1]
    for name in ("tokens", "scored", "pairs", "attention", "full"):
        mean = float(np.mean([getattr(load, name) for load in c.found]))
        assert getattr(c.mean, name) == pytest.approx(mean), name
    assert len(QUESTIONS) / c.mean.pairs == pytest.approx(len(c.found))  # steps of an epoch


@pytest.mark.parametrize("options", [{}, {"disable_dropout": False}, {"layout": "shared"}])
def test_a_plan_reads_about_what_random_batches_hold(options: dict[str, Any], folder: Path) -> None:
    """Pairs meet others of their question by chance: the mean and heaviest batch of five epochs."""
    c = counted(folder, epochs=5, per_device_train_batch_size=5, **options)
    assert c.heaviest.tokens >= max(load.tokens for load in c.found)
    mean = float(np.mean([load.tokens for load in c.found]))
    assert c.mean.tokens == pytest.approx(mean, rel=1e-9 if c.layout == "shared" else 0.05)
    assert c.mean.full == pytest.approx(float(np.mean([load.full for load in c.found])))


def test_lengths_of_data_are_those_of_training(folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "pairs.jsonl"
    data.write_text("\n".join(json.dumps(row) for row in ROWS), encoding="utf-8")
    plan = plan_of(folder, method="dpo", train_data=data)
    assert plan.lengths.total == len(ROWS)
    first = plan.lengths.pairs[0]  # "0+0=" " 0<eos>" against " 1, surely<eos>"
    tails = [len(side.ids) - first.shared for side in (first.chosen, first.rejected)]
    assert (first.shared, *tails) == (5, 2, 10)
    assert Load.of(PairCollator(0)([first])).scored == 3 + 11
    assert plan.steps == pytest.approx(len(ROWS) / 4)
    assert not (folder / "out").exists()


def test_given_lengths_are_a_pair_of_such_tokens() -> None:
    lengths = given_lengths("10,4,6")
    (one,) = lengths.pairs
    assert (row_tokens([one], "shared"), row_tokens([one], "separate")) == (20, 30)
    assert (lengths.longest, lengths.sharing) == (16, 1.5)
    whole = 14 * 15 // 2 + 16 * 17 // 2
    separate, shared = (
        Load.of(PairCollator(0, layout=how)([one]))
        for how in ("separate", "shared")  # type: ignore[arg-type]
    )
    assert (separate.attention, shared.attention) == (whole, whole - 10 * 11 // 2)
    assert (separate.scored, shared.scored) == (10, 10)


def test_lengths_that_no_run_could_hold_are_refused_before_they_are_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="4096 positions"):
        planned(tmp_path, lengths="1000000000000,10,10")


def test_the_heaviest_batch_holds_the_longest_pairs(folder: Path) -> None:
    setting = read_setting(load_options(words_of(folder, per_device_train_batch_size=2)))
    lengths = lengths_of(*(pair(p, 0, (5, 5), p) for p in (10, 50, 90)))
    heaviest, mean = batches(lengths, setting, "shared")
    assert heaviest.tokens == 60 + 100
    assert mean.tokens == pytest.approx(2 * 60)
    padded, _ = batches(lengths, setting, "padded")
    assert (padded.rows, padded.length) == (4, 95)


def test_the_heaviest_batch_of_trees_is_of_pairs_that_share_least(folder: Path) -> None:
    """Two long pairs of one question share their front; a shorter one of another does not."""
    setting = read_setting(load_options(words_of(folder, per_device_train_batch_size=2)))
    long = tree_of_steps(6, 4, question=1)[-2:]
    short = replace(pair(3, 0, (4, 4), 9), question=2)
    heaviest, _ = batches(lengths_of(*long, short), setting, "tree")
    assert heaviest.tokens == row_tokens([long[1]], "shared") + 11


def test_taking_one_pair_after_the_other_finds_about_the_heaviest_batch(folder: Path) -> None:
    """Never lighter than any of 300 batches drawn at random."""
    setting = read_setting(load_options(words_of(folder, per_device_train_batch_size=4)))
    pairs = [one for question in range(3) for one in tree_of_steps(7, 5, question)]
    heaviest, _ = batches(lengths_of(*pairs), setting, "tree")
    draw = random.Random(0)
    assert heaviest.tokens >= max(row_tokens(draw.sample(pairs, 4), "tree") for _ in range(300))


# -- what is said --------------------------------------------------------------------------------


def test_rows_of_whole_questions_are_advised_where_they_read_less(folder: Path) -> None:
    plan = plan_of(folder)
    (advice,) = plan.advice
    option, budget = advice.change.split(": ")
    assert option == "tokens_per_batch"
    assert int(budget) == plan.heaviest.tokens
    packed = plan_of(folder, tokens_per_batch=budget)
    assert advice.reads is not None
    assert advice.reads[0] == pytest.approx(packed.mean.tokens * 40 / packed.mean.pairs)
    assert advice.reads[1] == pytest.approx(plan.mean.tokens * 10)
    # The body is traced at one length and scaled to others.
    assert advice.saves == pytest.approx(plan.need - packed.need, abs=1e-6 * plan.need)
    assert packed.advice == []
    told = plan_table(packed)
    assert f"layout tree, whole questions packed into rows of {budget} tokens" in told
    factor = packed.mean.full / packed.mean.tokens
    assert factor > 3
    assert f" in full: {factor:.2f} times as many" in told
    apart = plan_of(folder, tokens_per_batch=budget, group_by="none")
    assert [advice.change for advice in apart.advice] == ["group_by: question"]
    assert f"layout tree, pairs packed into rows of {budget} tokens" in plan_table(apart)
    told = plan_table(plan)
    assert f"  tokens_per_batch: {budget}\n      reads " in told
    assert "times fewer)" in told


def test_a_budget_that_a_pair_does_not_fit_is_refused_as_in_training(folder: Path) -> None:
    with pytest.raises(ConfigError, match="row 4: the pair has 24 tokens in layout tree, more"):
        plan_of(folder, tokens_per_batch=23)


def test_half_a_budget_is_no_less_than_the_largest_pair(folder: Path) -> None:
    read = load_options(words_of(folder, tokens_per_batch=40, pad_to_multiple_of=5))
    pairs = prepare_dataset(QUESTIONS, byte_tokenizer(), read.config, CONFIG, "train")
    lengths = data_lengths(pairs)
    assert max(row_tokens([pair], "tree") for pair in lengths.pairs) == 24
    found = advise(read_setting(read), lengths, "tree", lambda s: s.tokens_per_batch or 99, 1, 1)
    assert [one.change for one in found] == ["tokens_per_batch: 25"]
