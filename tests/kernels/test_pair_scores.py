"""One pass for linear scores: the same loss and gradients as the definition and as two passes."""

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from prefkit import DPO, TDPO, fused_preference_loss
from prefkit.loss.sides import Sides
from prefkit_kernels import pair_scores, token_stats
from prefkit_kernels.core import chunks
from prefkit_kernels.core.outputs import OUTPUTS
from prefkit_kernels.core.problem import problem_of
from prefkit_kernels.pair_scores import keep_dz, one_pass, operator
from prefkit_kernels.pair_scores.keep_dz import kept_gradients_op
from prefkit_kernels.pair_scores.one_pass import pair_scores_op
from prefkit_kernels.token_stats import passes as token_passes
from tests.kernels.kernel_cases import Case, build, device_of, relative_error
from tests.loss.test_objectives import CASES, Direct, sample

LINEAR = [name for name, (objective, _) in CASES.items() if objective.linear is not None]


def one_pair(weighted: bool = True) -> dict[str, Tensor]:
    """Pair 0 of the sample alone."""
    x = sample(weighted)
    x["segments"] = torch.where(x["segments"] < 2, x["segments"], -1)
    return x


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("passes", ["one_pass", "keep_dz", "two_pass"])
@pytest.mark.parametrize("name", LINEAR)
def test_one_pair_with_a_trainable_head_equals_the_direct_formula(
    name: str, passes: str, weighted: bool
) -> None:
    objective, formula = CASES[name]
    ours, direct = one_pair(weighted), one_pair(weighted)
    found = fused_preference_loss(objective=objective, passes=passes, **ours)
    expected = formula(Direct(direct, 0), Direct(direct, 1))
    assert abs(found.loss.item() - expected.item()) < 1e-10
    found.loss.backward()
    expected.backward()
    for key in ("hidden", "weight"):
        assert (ours[key].grad - direct[key].grad).abs().max() < 1e-10, key


@pytest.mark.parametrize("name", LINEAR)
def test_several_pairs_with_a_trainable_head_keep_dz(name: str) -> None:
    """One pass whose kept gradients give what two passes give; each pair with its own factor."""
    objective, _ = CASES[name]
    kept, recomputed = sample(True), sample(True)
    losses = []
    for x, passes in ((kept, "keep_dz"), (recomputed, "two_pass")):
        found = fused_preference_loss(objective=objective, passes=passes, **x)
        (3 * found.loss).backward()
        losses.append(found.loss.item())
    assert abs(losses[0] - losses[1]) < 1e-10
    for key in ("hidden", "weight"):
        assert (kept[key].grad - recomputed[key].grad).abs().max() < 1e-10, key


@pytest.mark.parametrize("name", LINEAR)
def test_coefficients_are_the_derivatives_of_the_margin(name: str) -> None:
    """`Linear` states value and coefficients; autograd of the value must give the coefficients."""
    objective, _ = CASES[name]
    x, draw = sample(True), torch.Generator().manual_seed(1)
    logp, kl = (
        torch.rand(len(x["targets"]), generator=draw, dtype=torch.float64).requires_grad_()
        for _ in range(2)
    )
    sides = Sides.of(x["segments"], x["weights"], x["weights"])
    margins = objective.linear.margins(sides, logp, kl, None)
    wanted = torch.autograd.grad(margins.sum(), [logp, kl], allow_unused=True)
    found = objective.linear.coefficients(sides)
    torch.testing.assert_close(found["logp"], wanted[0], rtol=1e-12, atol=0)
    if objective.needs_kl:
        torch.testing.assert_close(found["kl"], wanted[1], rtol=1e-12, atol=0)


# The last has quantities that are only read, beside the scores: no coefficient is of them.
OUTPUT_SETS = [("logp",), ("logp", "ref_logp", "kl"), ("kl",), ("logp", "entropy", "log_sum_sq")]
# Shapes and options that take different ways through the kernels: (Case, token_stats).
CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({"bias": False, "near": 0.1}, {}),
    "bias": ({}, {}),
    "scale and temperature": ({}, {"logit_scale": 0.8, "temperature": 1.1}),
    "softcap": ({}, {"softcap": 8.0, "logit_scale": 0.8}),
    "log-ratios beyond 60": ({}, {"temperature": 0.1}),
    "shorter reference": ({"ref_vocab": 280}, {}),
}


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("head", ["trainable", "frozen", "trainable, dz kept"])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("outputs", OUTPUT_SETS)
def test_scores_equal_those_of_token_stats(
    outputs: tuple[str, ...], change: str, head: str, backend: str
) -> None:
    """Any coefficients, several chunks; token_stats in fp64 is the oracle."""
    if backend == "triton":
        pytest.importorskip("triton", reason="Triton is not installed")
    shape, options = CHANGES[change]
    options = {**options, "memory_budget": 6000}
    frozen, num_pairs = head == "frozen", 1 if head == "trainable" else 3
    passes = "keep_dz" if "kept" in head else "one_pass"
    case = Case(tokens=17, frozen_head=frozen, outputs=outputs, **shape)
    dtype = torch.float64 if backend == "torch" else torch.float32
    device = device_of(backend)
    ours, oracle = build(case, dtype, device), build(case)
    pairs = torch.arange(17) % num_pairs
    given = {name: ours.cotangents[name] for name in outputs if name in one_pass.COEFFICIENTS}
    found = pair_scores(
        ours.hidden,
        ours.weight,
        ours.targets,
        pairs.to(device),
        num_pairs,
        given,
        bias=ours.bias,
        ref_hidden=ours.ref_hidden,
        ref_weight=ours.ref_weight,
        ref_bias=ours.ref_bias,
        outputs=outputs,
        backend=backend,
        passes=passes,
        **options,
    )
    stats = token_stats(
        *(oracle.hidden, oracle.weight, oracle.targets, oracle.bias),
        *(oracle.ref_hidden, oracle.ref_weight, oracle.ref_bias),
        outputs=outputs,
        backend="reference",
        **{k: v for k, v in options.items() if k != "memory_budget"},
    )
    value = sum(getattr(stats, name) * oracle.cotangents[name] for name in given)
    expected = torch.stack([value[pairs == i].sum() for i in range(len(found.scores))])
    upstream = torch.tensor([0.7, -1.3, 2.0], dtype=torch.float64)[: len(expected)]
    (found.scores * upstream.to(device, dtype)).sum().backward()
    (expected * upstream).sum().backward()
    bound = 1e-11 if backend == "torch" else 5e-6
    assert relative_error(found.scores.double().cpu(), expected) < bound
    for name in outputs:
        error = relative_error(getattr(found.stats, name).double().cpu(), getattr(stats, name))
        assert error < bound, name
    for name in ("hidden",) if frozen else ("hidden", "weight", "bias"):
        if getattr(ours, name) is None:
            continue
        grads = (getattr(x, name).grad.double().cpu() for x in (ours, oracle))
        assert relative_error(*grads) < bound, name


def test_auto_takes_one_pass_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    import prefkit.loss.fused

    taken: list[str] = []
    inner = prefkit.loss.fused.pair_scores

    def watched(*args: Any, passes: str, **options: Any) -> Any:
        taken.append(passes)
        return inner(*args, passes=passes, **options)

    for module in (prefkit.loss.fused, prefkit.loss.shared_tokens):
        monkeypatch.setattr(module, "pair_scores", watched)

    def chosen(x: dict[str, Tensor], objective: object = DPO(), **options: Any) -> str:
        taken.clear()
        fused_preference_loss(objective=objective, **x, **options)
        return (taken or ["two_pass"])[0]

    few = {"memory_budget": 23 * 8}  # bytes for a token, not for all of them
    assert chosen(one_pair()) == chosen(one_pair(), TDPO()) == "keep_dz"
    assert chosen(one_pair(), **few) == chosen(one_pair(), TDPO(), **few) == "one_pass"
    assert chosen(sample(True)) == "keep_dz"  # two pairs, trainable head
    assert chosen(sample(True), **few) == "two_pass"
    assert chosen({**sample(True), "weight": sample(True)["weight"].detach()}) == "one_pass"
    assert chosen(one_pair(), DPO(nll_weight=0.1)) == "keep_dz"  # a score for each token
    assert chosen(one_pair(), DPO(nll_weight=0.1), **few) == "two_pass"
    assert chosen(one_pair(), TDPO(token_weights="confpo")) == "two_pass"  # and a KL
    assert chosen(one_pair(), passes="two_pass") == "two_pass"
    with torch.no_grad():
        assert chosen(one_pair()) == "two_pass"


@pytest.mark.parametrize("outputs", [("logp", "ref_logp"), ("logp", "ref_logp", "kl")])
@pytest.mark.parametrize("few", [False, True])
def test_a_head_that_both_share_is_read_once(
    few: bool, outputs: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One product of twice the rows gives what two give."""
    rows: list[int] = []
    inner = chunks.project_

    def watched(out: Tensor, hidden: Tensor, weight: Tensor) -> Tensor:
        rows.append(len(hidden))
        return inner(out, hidden, weight)

    monkeypatch.setattr(chunks, "project_", watched)
    case = Case(outputs=outputs, frozen_head=True)
    found = []
    for shared in (True, False):
        x = build(case)
        ref_weight = x.weight if shared else x.weight.clone()
        coefficients = {name: x.cotangents[name] for name in outputs if name != "ref_logp"}
        heads = (x.hidden, x.weight, x.targets, torch.arange(13) % 2, 2, coefficients)
        options = {"ref_hidden": x.ref_hidden, "ref_weight": ref_weight, "outputs": outputs}
        options["memory_budget"] = 1 << 20 if few else 304 * 8 * 4
        out = pair_scores(*heads, **options)
        out.scores.sum().backward()
        found.append((out.scores.detach(), out.stats.ref_logp, x.hidden.grad))
    # Eleven tokens count. Few: 22 rows at once, then 11 twice. Else four rows of one head or two
    # of both, whose product is one of four.
    expected = [22, 11, 11] if few else [4, 4, 4, 4, 3, 3] * 2
    if "kl" in outputs and not few:
        expected = [4] * 5 + [2] + [2] * 10 + [1, 1]
    assert rows == expected
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


def test_kept_gradients_take_the_place_of_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """In fp32 they need no buffer beside them, and all tokens are one chunk."""
    made: list[chunks.Chunks] = []
    inner = chunks.Chunks._read

    def watched(self: chunks.Chunks, *args: Any) -> Any:
        made.append(self)
        return inner(self, *args)

    monkeypatch.setattr(chunks.Chunks, "_read", watched)
    _scores(Case(), torch.float32, "keep_dz")
    assert len(made) == 1
    assert not made[0]._store


@pytest.mark.parametrize(
    ("rows", "pairs", "dtype", "keeps"),
    [
        (256, 1, torch.float32, True),  # no more than a buffer of logits of 256 rows
        (257, 1, torch.float32, False),  # an fp32 accumulator is the gradient itself
        (257, 2, torch.float32, True),
        (512, 8, torch.float32, True),  # as many bytes as an fp32 weight's accumulator
        (513, 8, torch.float32, False),
        (512, 1, torch.bfloat16, True),  # the accumulator would lie beside the gradient
        (513, 1, torch.bfloat16, False),
    ],
)
def test_bytes_decide_whether_dz_is_kept(
    rows: int, pairs: int, dtype: torch.dtype, keeps: bool
) -> None:
    hidden, weight = torch.empty(1, 512, dtype=dtype), torch.empty(1600, 512, dtype=dtype)
    assert keep_dz.fits(hidden, weight, rows, pairs) is keeps
    given = 1600 * 4 * 100
    assert keep_dz.fits(hidden, weight, 100, pairs, budget=given)
    assert not keep_dz.fits(hidden, weight, 101, pairs, budget=given)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objective": DPO(nll_weight=0.1)}, "passes='one_pass' cannot .* nll_weight"),
        ({"objective": DPO(reduction="position")}, "reduction='position'"),
        ({"segments": sample(True)["segments"]}, "one pair a call, this one holds 2"),
        ({"backend": "reference"}, "unfused definition"),
        ({"num_scored": -1}, "num_scored must be a whole number"),
        ({"memory_budget": 1e9}, "memory_budget must be a whole number"),
        ({"num_pairs": 0}, "num_pairs is the divisor"),
        ({"temperature": float("inf")}, "temperature must be > 0 and finite"),
        ({"logit_scale": float("nan")}, "logit_scale must be a finite"),
        ({"vocab_shard": True}, "vocab_shard must be a VocabShard"),
        ({"weights": torch.ones(19, requires_grad=True)}, "weights that require a gradient"),
        ({"passes": "both"}, "passes must be one of auto, one_pass, keep_dz, two_pass"),
        ({"pairs_in_call": 0}, "pairs_in_call must be a whole number > 0, got 0"),
        ({"num_scored": 3}, "num_scored is 3, not the number of positions"),
        ({"num_scored": 19}, "num_scored is 19, every position"),
    ],
)
def test_what_one_pass_cannot_do_is_refused(change: dict, message: str) -> None:
    arguments = {"objective": DPO(), "passes": "one_pass", **one_pair(), **change}
    with pytest.raises(ValueError, match=message):
        fused_preference_loss(**arguments)


def test_what_would_be_silently_wrong_takes_two_passes() -> None:
    """Gradients of token weights, and terms that a class of one's own adds to the loss."""

    class Extra(DPO):
        def __call__(self, stats: Any, *args: Any, **options: Any) -> Any:
            result = super().__call__(stats, *args, **options)
            return replace(result, loss=result.loss - stats.logp.mean())

    for objective in (DPO(), Extra()):
        grads = []
        for passes in ("auto", "two_pass"):
            x = one_pair()
            x["weights"].requires_grad_(type(objective) is DPO)
            fused_preference_loss(objective=objective, passes=passes, **x).loss.backward()
            leaf = x["weights"] if type(objective) is DPO else x["hidden"]
            grads.append(leaf.grad)
        assert torch.equal(*grads)
        assert grads[0].abs().max() > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pairs": torch.ones(13, dtype=torch.int64)}, "pairs must be in 0..0"),
        ({"pairs": -torch.ones(13, dtype=torch.int64)}, "pairs must be in 0..0"),
        ({"pairs": torch.zeros(13)}, "int64"),
        ({"num_pairs": 2, "passes": "one_pass"}, "2 pairs .* an accumulator .* or keep dz"),
        ({"num_pairs": 2, "memory_budget": 9}, "2 pairs .* 13 tokens .* passes='keep_dz'"),
        ({"passes": "two_pass"}, "for two passes take token_stats"),
        ({"passes": "all"}, "passes must be one of"),
        ({"num_pairs": 0}, "num_pairs must be"),
        ({"num_pairs": 1.0}, "num_pairs must be a whole number"),
        ({"coefficients": {"logp": 1.0}}, "must be a tensor .* got a float"),
        ({"coefficients": [1.0]}, "must be a dict of tensors, got a list"),
        ({"coefficients": {"logp": torch.ones(13, requires_grad=True)}}, "require a gradient"),
        ({"coefficients": {"entropy": torch.ones(13)}}, "coefficients are of"),
        ({"coefficients": {"logp": torch.ones(3)}}, "must be .T,. = .13,."),
    ],
)
def test_wrong_pairs_and_coefficients_are_refused(change: dict, message: str) -> None:
    problem = build(Case())
    arguments = {
        "pairs": torch.zeros(13, dtype=torch.int64),
        "num_pairs": 1,
        "coefficients": {"logp": torch.ones(13)},
        **change,
    }
    with pytest.raises(ValueError, match=message):
        pair_scores(problem.hidden, problem.weight, problem.targets, **arguments)


@pytest.mark.parametrize("passes", ["one_pass", "keep_dz"])
def test_counts_that_are_known_change_nothing(passes: str) -> None:
    known, counted = one_pair(), one_pair()
    scored = int((known["segments"] >= 0).sum())
    for x, options in ((known, {"pairs_in_call": 1, "num_scored": scored}), (counted, {})):
        fused_preference_loss(objective=TDPO(), passes=passes, **x, **options).loss.backward()
    assert torch.equal(known["hidden"].grad, counted["hidden"].grad)
    assert torch.equal(known["weight"].grad, counted["weight"].grad)


def _scores(
    case: Case, dtype: torch.dtype = torch.float64, passes: str = "one_pass"
) -> tuple[Any, Tensor]:
    problem = build(case, dtype)
    pairs = torch.zeros(case.tokens, dtype=torch.int64)
    ones = {"logp": torch.ones(case.tokens, dtype=dtype)}
    return problem, pair_scores(
        *(problem.hidden, problem.weight, problem.targets, pairs, 1, ones),
        bias=problem.bias,
        passes=passes,
    ).scores


def test_the_gradient_of_an_fp32_weight_is_the_accumulator_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No second (V, D) matrix: at V 128,256 and D 4096 it would be 2.1 GB."""
    made = []

    def watched(*args: Any) -> Any:
        found = pair_scores_op(*args)
        made.append(found[3].data_ptr())
        return found

    monkeypatch.setattr(operator, "pair_scores_op", watched)
    problem, scores = _scores(Case(), torch.float32)
    scores.sum().backward()
    assert problem.weight.grad.data_ptr() == made[0]


def test_a_second_backward_is_refused_not_wrong() -> None:
    for hooks in (nullcontext, lambda: saved_tensors_hooks(lambda x: x, lambda x: x)):
        with hooks():  # under which autograd does not see that a saved tensor was changed
            _, scores = _scores(Case())
        scores.sum().backward(retain_graph=True)
        with pytest.raises(RuntimeError, match=r"a second backward .* passes='two_pass'"):
            scores.sum().backward()
    problem, scores = _scores(Case())
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad((scores**2).sum(), problem.hidden, create_graph=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_where_dz_is_kept_a_second_backward_gives_the_same(dtype: torch.dtype) -> None:
    """As two passes do, which `auto` took for several pairs before it kept dz."""
    problem, scores = _scores(Case(bias=False), dtype, "keep_dz")
    leaves = [problem.hidden, problem.weight]
    first = torch.autograd.grad(scores.sum(), leaves, retain_graph=True)
    again = torch.autograd.grad(scores.sum(), leaves)
    for one, two in zip(first, again, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_process_may_have_no_class_or_no_token_to_keep(dtype: torch.dtype) -> None:
    one, rows = torch.ones(()), torch.tensor([1, 2])
    states, factors = torch.randn(2, 4).to(dtype), torch.ones(2)
    settings = (-100, 0, dtype, True)
    found = keep_dz.gradients(torch.empty(2, 0, dtype=dtype), one, states, rows, factors, *settings)
    assert [x.shape for x in found] == [(0, 4), (0,)]
    none, settings = torch.empty(0, 16, dtype=dtype), (-100, 16, dtype, True)
    found = keep_dz.gradients(none, one, states, rows * 0 - 100, factors, *settings)
    assert [x.shape for x in found] == [(16, 4), (16,)]
    assert all((x == 0).all() for x in found)


def test_kept_gradients_hold_the_reference_of_a_smaller_vocabulary_too() -> None:
    """A pad token more in the policy alone: no whole logits of the reference beside dz."""
    for classes, buffers in ((301, 0), (300, 0), (290, 0), (330, 1)):
        case = Case(ref_vocab=classes, outputs=("logp", "ref_logp"), bias=False)
        x = build(case, torch.float32)
        work = problem_of(
            *(x.hidden.detach(), x.weight.detach(), x.targets, None, x.ref_hidden, x.ref_weight),
            *(None, [0, 1], [], -100, 1.0, 0.0, 1.0, 0, -1, "torch", "", 0, 0, 0),
        )
        made = chunks.Chunks(work, gradients=1, keep=True)
        assert len(list(made)) == 1
        assert len(made._store) == buffers, classes


def test_a_compiled_graph_that_keeps_dz_wants_the_number_of_tokens() -> None:
    problem = build(Case(tokens=4, ignored=()), torch.float32)
    pairs, ones = torch.arange(4) // 2, {"logp": torch.ones(4)}

    @torch.compile(fullgraph=True, backend="eager")
    def scores(hidden: Tensor) -> Tensor:
        heads = (hidden, problem.weight, problem.targets, pairs, 2, ones)
        return pair_scores(*heads, passes="keep_dz").scores

    with pytest.raises(Exception, match="num_scored"):
        scores(problem.hidden)


@pytest.mark.parametrize("passes", ["one_pass", "keep_dz"])
def test_skipped_rows_may_hold_anything(passes: str) -> None:
    """NaN hidden states, coefficients and pairs out of range in rows that are ignored."""
    clean, dirty = build(Case()), build(Case())
    ignored = clean.targets < 0
    dirty.hidden.data[ignored] = torch.nan
    for problem, junk in ((clean, 0.0), (dirty, torch.nan)):
        pairs = torch.where(ignored, -1 if junk != junk else 0, 0)
        coefficient = torch.where(ignored, junk, 0.5).double()
        args = (problem.hidden, problem.weight, problem.targets, pairs, 1)
        scores = pair_scores(*args, {"logp": coefficient}, passes=passes).scores
        scores.sum().backward()
    assert torch.equal(dirty.hidden.grad, clean.hidden.grad)
    assert torch.equal(dirty.weight.grad, clean.weight.grad)
    assert (clean.hidden.grad[ignored] == 0).all()


@pytest.mark.parametrize("passes", ["one_pass", "keep_dz"])
def test_no_scored_row_at_all_gives_zero_gradients(passes: str) -> None:
    problem, scores = _scores(Case(tokens=3, ignored=(0, 1, 2)), passes=passes)
    scores.sum().backward()
    assert scores.tolist() == [0.0]
    assert problem.hidden.grad.abs().max() == problem.weight.grad.abs().max() == 0


@pytest.mark.parametrize(("frozen", "keep"), [(False, False), (True, False), (False, True)])
def test_opcheck(frozen: bool, keep: bool) -> None:
    # No padding in rows of 304 classes: it holds anything, which opcheck would compare.
    case = Case(tokens=6, frozen_head=frozen, vocab=304, ref_vocab=304)
    problem = build(case, torch.float32)
    heads = (problem.hidden, problem.weight, problem.targets, problem.bias)
    reference = (problem.ref_hidden, problem.ref_weight, problem.ref_bias)
    codes = [OUTPUTS.index(name) for name in ("logp", "kl")]
    scored = int((problem.targets >= 0).sum()) if keep else -1
    settings = (codes, [], -100, 1.0, 0.0, 1.0, 1 << 20, scored, "torch", "", 0, 0, 0)
    several = frozen or keep
    pairs = torch.arange(6) // 3 if several else torch.zeros(6, dtype=torch.int64)
    last = (pairs, torch.ones(2, 6), 1 + several, True, not frozen, not frozen, keep)
    plain = [x.detach() for x in (*heads, *reference)]  # its gradient is tied on outside
    torch.library.opcheck(pair_scores_op, (*plain, *settings, *last))
    if keep:
        made = pair_scores_op(*plain, *settings, *last)
        rows = (problem.hidden.detach(), problem.targets, torch.ones(6), -100, case.vocab)
        options = (torch.bfloat16, True, True)
        torch.library.opcheck(kept_gradients_op, (*made[-2:], *rows, *options))


@pytest.mark.parametrize("frozen", [False, True], ids=["trainable", "frozen"])
def test_autocast_casts_the_operands_and_rounds_no_fp32_gradient(frozen: bool) -> None:
    cast, low = one_pair(), _low_case(frozen, torch.bfloat16)
    for key in ("hidden", "weight", "ref_hidden", "ref_weight"):
        cast[key] = low[key].detach().float().requires_grad_(low[key].requires_grad)
    with torch.autocast("cpu", torch.bfloat16):
        found = fused_preference_loss(objective=TDPO(), **cast)
    expected = fused_preference_loss(objective=TDPO(), **low)
    assert torch.equal(found.loss, expected.loss)
    found.loss.backward()
    expected.loss.backward()
    for key in ("hidden",) if frozen else ("hidden", "weight"):
        assert cast[key].grad.dtype == torch.float32
        assert torch.equal(cast[key].grad.bfloat16(), low[key].grad), key


@pytest.mark.parametrize("passes", ["one_pass", "keep_dz", "two_pass"])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_the_whole_loss_compiles_without_a_graph_break(backend: str, passes: str) -> None:
    def loss(x: dict[str, Tensor]) -> Tensor:
        return fused_preference_loss(
            x["hidden"] * 2,
            x["weight"],
            x["targets"],
            x["segments"],
            TDPO(beta=0.3),
            weights=x["weights"],
            ref_hidden=x["ref_hidden"],
            ref_weight=x["ref_weight"],
            passes=passes,
            pairs_in_call=1,
            num_scored=6,
        ).loss

    eager, compiled = one_pair(), one_pair()
    loss(eager).backward()
    torch.compile(loss, fullgraph=True, backend=backend)(compiled).backward()
    for key in ("hidden", "weight"):
        torch.testing.assert_close(compiled[key].grad, eager[key].grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("passes", ["one_pass", "keep_dz"])
@pytest.mark.parametrize("frozen", [False, True], ids=["trainable", "frozen"])
def test_low_precision_inputs(dtype: torch.dtype, frozen: bool, passes: str) -> None:
    """Gradients rounded once: as exact as their dtype allows."""
    low, exact = (_low_case(frozen, dtype) for _ in range(2))
    exact = {k: v.detach().double() if v.is_floating_point() else v for k, v in exact.items()}
    for key in ("hidden", "weight"):
        exact[key].requires_grad_(low[key].requires_grad)
    for x in (low, exact):
        fused_preference_loss(objective=TDPO(), passes=passes, **x).loss.backward()
    for key in ("hidden",) if frozen else ("hidden", "weight"):
        error = relative_error(low[key].grad.double(), exact[key].grad)
        assert low[key].grad.dtype == dtype
        assert error < torch.finfo(dtype).eps / 4, key  # one rounding: 0.21 eps; two: 0.3


@pytest.mark.parametrize("budget", [1, 1200, 1 << 20], ids=["a token", "groups", "whole"])
def test_gradient_products_as_on_a_gpu(budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """There dz is rounded to the operands' dtype, and that of several chunks multiplied at once."""
    for module in (token_passes, chunks):
        monkeypatch.setattr(module, "gradient_dtype", lambda hidden: hidden.dtype)
    sizes: list[int] = []
    inner = one_pass.add_weight_grad_

    def watched(out: Tensor, dz: Tensor, hidden: Tensor, first: bool) -> Tensor:
        sizes.append(len(dz))
        return inner(out, dz, hidden, first)

    monkeypatch.setattr(one_pass, "add_weight_grad_", watched)
    low = _low_case(False, torch.bfloat16)
    exact = {k: v.detach().double() if v.is_floating_point() else v for k, v in low.items()}
    for key in ("hidden", "weight"):
        exact[key].requires_grad_()
    options = {"objective": TDPO(), "passes": "one_pass"}
    fused_preference_loss(**low, **options, memory_budget=budget).loss.backward()
    assert sizes == {1: [3, 3], 1200: [6], 1 << 20: [6]}[budget]
    fused_preference_loss(**exact, **options).loss.backward()
    for key in ("hidden", "weight"):
        assert relative_error(low[key].grad.double(), exact[key].grad) < 1e-2, key


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("pairs", [1, 2])
@pytest.mark.parametrize("budget", [1, 1 << 20], ids=["a token", "whole"])
def test_kept_gradients_as_on_a_gpu(
    budget: int, pairs: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There dz is kept in the operands' dtype; pairs whose factors differ by much, or are tiny."""
    for module in (token_passes, chunks, keep_dz, one_pass):
        monkeypatch.setattr(module, "gradient_dtype", lambda hidden: hidden.dtype)
    whole = one_pair() if pairs == 1 else sample(True)
    low = {k: v.detach().to(dtype) if v.is_floating_point() else v for k, v in whole.items()}
    exact = {k: v.double() if v.is_floating_point() else v for k, v in low.items()}
    for x in (low, exact):
        x["weights"] = x["weights"].double()
        for key in ("hidden", "weight"):
            x[key].requires_grad_()
        options = {"passes": "keep_dz" if x is low else "two_pass", "num_pairs": 1e-4}
        options |= {"memory_budget": budget} if x is low else {}
        fused_preference_loss(objective=TDPO(beta=3.0), **x, **options).loss.backward()
    for key in ("hidden", "weight"):
        assert low[key].grad.dtype == dtype
        assert relative_error(low[key].grad.double(), exact[key].grad) < 1e-2, key


@pytest.mark.parametrize("passes", ["one_pass", "keep_dz"])
def test_fp16_gradients_do_not_underflow_where_coefficients_are_small(
    passes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU dz is fp16 before a GradScaler's factor is known: 1/4096 of p would flush to 0."""
    for module in (chunks, keep_dz, one_pass):
        monkeypatch.setattr(module, "gradient_dtype", lambda hidden: hidden.dtype)
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(12, 8, generator=draw).half().requires_grad_()
    weight = torch.randn(20_000, 8, generator=draw).half().requires_grad_()
    exact = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    targets = torch.randint(0, 20_000, (12,), generator=draw)
    share = torch.full((12,), 1 / 4096)
    for operands in ((hidden, weight), exact):
        rows = (targets, torch.zeros_like(targets), 1)
        coefficients = {"logp": share.to(exact[0].dtype)}
        found = pair_scores(*operands, *rows, coefficients, passes=passes)
        (found.scores.sum() * 4096).backward()
    for low, truth in zip((hidden, weight), exact, strict=True):
        assert relative_error(low.grad.double(), truth.grad) < 1e-3


def test_long_vectors_are_scaled_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """More rows than a block of `scale_rows`, each with its own factor, in place and not."""
    monkeypatch.setattr(keep_dz, "_SCALED_BLOCK", 12)
    direction, factors = torch.randn(31, 5), torch.randn(31)
    for dtype in (torch.float32, torch.bfloat16):
        out = torch.empty(31, 5, dtype=dtype)
        keep_dz.scale_rows(direction, factors, out)
        assert torch.equal(out, (direction * factors[:, None]).to(dtype))
    keep_dz.scale_rows(direction.flatten(), torch.ones(155) * 2, doubled := torch.empty(155))
    assert torch.equal(doubled, direction.flatten() * 2)


def test_a_group_holds_no_more_gradients_than_there_are_chunks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(chunks, "gradient_dtype", lambda hidden: hidden.dtype)
    biggest, empty = 0, Tensor.new_empty

    def watched(self: Tensor, *size: Any, **options: Any) -> Tensor:
        nonlocal biggest
        made = empty(self, *size, **options)
        biggest = max(biggest, made.numel() if made.dtype == torch.bfloat16 else 0)
        return made

    x = _low_case(False, torch.bfloat16)
    monkeypatch.setattr(Tensor, "new_empty", watched)
    fused_preference_loss(objective=DPO(), passes="one_pass", **x)
    assert biggest == 6 * 32  # six scored tokens in one chunk, 23 classes in padded rows


def _low_case(frozen: bool, dtype: torch.dtype) -> dict[str, Tensor]:
    x = one_pair()
    for key in ("hidden", "weight", "ref_hidden", "ref_weight"):
        grad = key == "hidden" or (key == "weight" and not frozen)
        x[key] = x[key].detach().to(dtype).requires_grad_(grad)
    return x
