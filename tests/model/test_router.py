"""The routers' auxiliary loss: transformers' own value, TRL's training, in every layout."""

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.models.deepseek_v3 import DeepseekV3Config
from transformers.models.doge import DogeConfig
from transformers.models.llama4 import Llama4TextConfig
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from prefkit.data.pair import TokenizedPair
from prefkit.errors import ConfigError, ModelError
from prefkit.model.router import Router, find_router, load_balancing_loss
from tests.gloo import join
from tests.train import test_supervised
from tests.train.test_trainer import FirstGradient
from tests.train.trainer_cases import MOE, ROWS, SHAPE, VOCAB, logs_of, tiny_model, trainer

COEFFICIENT = 0.5


def by_definition(gates: list[Tensor], top_k: int) -> Tensor:
    """E·Σ f·P over the rows of all layers together, from the definition, one row at a time."""
    rows = torch.cat(gates)
    probability = rows.softmax(-1)
    share = torch.zeros_like(rows[0])
    for row in rows.detach():
        share[row.argsort(descending=True)[:top_k]] += 1 / len(rows)
    return rows.shape[-1] * (share * probability.mean(0)).sum()


def test_value_and_gradient_are_the_definition_s() -> None:
    torch.manual_seed(0)
    gates = [torch.randn(12, 5, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    counts = torch.arange(12) % 4 != 3
    for mask in (None, counts):
        kept = [g if mask is None else g[mask] for g in gates]
        got, want = load_balancing_loss(gates, 2, mask), by_definition(kept, 2)
        torch.testing.assert_close(got, want, rtol=1e-12, atol=0)
        for mine, its in zip(
            torch.autograd.grad(got, gates), torch.autograd.grad(want, gates), strict=True
        ):
            torch.testing.assert_close(mine, its, rtol=1e-10, atol=1e-14)
        whole = None if mask is None else mask.long().reshape(3, 4)
        theirs = load_balancing_loss_func(tuple(gates), 5, 2, whole)
        assert float(got) == pytest.approx(float(theirs), rel=1e-6)


# -- which models have one -------------------------------------------------------------------------


@pytest.mark.parametrize("family", MOE)
def test_routers_are_found_with_the_config_s_coefficient(family: str) -> None:
    model = tiny_model(family)
    router, _ = find_router(model, None)
    assert router == Router(model.config.num_experts_per_tok, model.config.router_aux_loss_coef)
    assert find_router(model, 0.25)[0] == Router(model.config.num_experts_per_tok, 0.25)
    assert find_router(model, 0.0)[0] is None


def deepseek() -> Any:
    sizes = dict.fromkeys(("kv_lora_rank", "q_lora_rank", "qk_rope_head_dim"), 8)
    sizes |= dict.fromkeys(("qk_nope_head_dim", "v_head_dim", "moe_intermediate_size"), 8)
    groups = {"n_group": 1, "topk_group": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1}
    return DeepseekV3Config(
        **{**SHAPE, "num_key_value_heads": 2, "vocab_size": VOCAB, "n_routed_experts": 4},
        **sizes,
        **groups,
    )


def doge() -> Any:
    experts = {"is_moe": True, "num_experts": 16, "num_experts_per_tok": 4}
    return DogeConfig(**{**SHAPE, "vocab_size": VOCAB}, **experts)


@pytest.mark.parametrize(
    ("config", "said"), [(deepseek, "returns none"), (doge, "not one number"), (None, "has no")]
)
def test_other_models_have_none(config: Any, said: str) -> None:
    model = tiny_model() if config is None else AutoModelForCausalLM.from_config(config())
    assert find_router(model, None)[0] is None
    with pytest.raises(ModelError, match=f"router_aux_loss_coef is 0.1.*{said}"):
        find_router(model, 0.1)


def llama4() -> Any:
    sizes = {"intermediate_size_mlp": 32, "num_local_experts": 4, "attention_chunk_size": 32}
    return Llama4TextConfig(**{**SHAPE, "vocab_size": VOCAB}, **sizes)


OTHERS = {"deepseek": deepseek, "doge": doge, "llama4": llama4}


@pytest.mark.parametrize("local_rank", ["0", "1"])
@pytest.mark.parametrize("family", [*MOE, *OTHERS])
def test_processes_decide_alike_where_one_alone_has_the_weights(
    family: str, local_rank: str, monkeypatch: Any, tmp_path: Path
) -> None:
    """A small copy decides, of which each process has the weights."""
    other = OTHERS.get(family)
    model = tiny_model(family) if other is None else AutoModelForCausalLM.from_config(other())
    want = find_router(model, None)[0]
    assert (want is None) == (family in OTHERS)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    if local_rank == "1":  # its memory holds whatever was there
        for parameter in model.parameters():
            parameter.data.fill_(float("nan"))
    join(0, 1, str(tmp_path))
    try:
        check_decision(model, want)
    finally:
        dist.destroy_process_group()


def check_decision(model: Any, want: Router | None) -> None:
    """The routers found; without, a coefficient is refused."""
    state = torch.random.get_rng_state()
    assert find_router(model, None)[0] == want
    if want is None:
        with pytest.raises(ModelError, match=r"router_aux_loss_coef is 0\.1"):
            find_router(model, 0.1)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("family", [*MOE, *OTHERS])
def test_models_without_memory_are_decided_alike(family: str) -> None:
    with torch.device("meta"):
        if family in OTHERS:
            model = AutoModelForCausalLM.from_config(OTHERS[family]())
        else:
            model = tiny_model(family)
    found = find_router(model, 0.25 if family in MOE else None)[0]
    assert found == (Router(model.config.num_experts_per_tok, 0.25) if family in MOE else None)
    if family in OTHERS:
        check_decision(model, None)


def test_a_model_that_gives_none_is_named() -> None:
    with pytest.raises(ModelError, match="no outputs of routers"):
        load_balancing_loss(None, 2)
    for top_k in (0, 5):
        with pytest.raises(ModelError, match=f"with {top_k} experts a token.*gives 4 experts"):
            load_balancing_loss([torch.randn(3, 4)], top_k)


def test_without_it_a_line_says_so(tmp_path: Path, caplog: Any) -> None:
    with caplog.at_level(logging.WARNING):
        for model in (tiny_model("mixtral"), AutoModelForCausalLM.from_config(deepseek())):
            off = trainer(tmp_path, model, router_aux_loss_coef=0, max_steps=1)
            assert off.router is None
    said = [r.message for r in caplog.records if "auxiliary loss" in r.message]
    assert len(said) == 2
    assert "router_aux_loss_coef is 0" in said[0]
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        trainer(tmp_path)
        trainer(tmp_path, tiny_model("mixtral"))
    assert not [r for r in caplog.records if "auxiliary loss" in r.message]


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"router_aux_loss_coef is 0\.1"):
        trainer(tmp_path, router_aux_loss_coef=0.1)
    with pytest.raises(ConfigError, match="router_aux_loss_coef is -1"):
        trainer(tmp_path, router_aux_loss_coef=-1)
    reentrant: dict[str, Any] = {"gradient_checkpointing_kwargs": {"use_reentrant": True}}
    with pytest.raises(ConfigError, match="use_reentrant"):
        trainer(tmp_path, tiny_model("mixtral"), gradient_checkpointing=True, **reentrant)


def exact_model(family: str) -> Any:
    """A model in fp64, its experts one by one: grouped products have no fp64."""
    model = tiny_model(family, scale=3.0).double()
    model.set_experts_implementation("eager")
    return model


# -- training --------------------------------------------------------------------------------------


def gradient(
    folder: Path, family: str, coefficient: float, kind: Any = trainer, **options: Any
) -> tuple[dict[str, Tensor], Any, list[list[Any]]]:
    """The gradient of the first step in fp64, and what its two batches of two hold."""
    keep = FirstGradient()
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, **options}
    made = kind(
        folder,
        exact_model(family),
        callbacks=[keep],
        max_steps=1,
        max_grad_norm=0.0,
        router_aux_loss_coef=coefficient,
        pad_to_multiple_of=16,
        **options,
    )
    batches: list[list[Any]] = []
    collate = made.data_collator

    def noting(items: list) -> Any:
        batches.append([item for _, item in items])
        return collate(items)

    made.data_collator = noting
    made.train()
    return keep.grads, made, batches[:2]


def read_once(model: Any, pairs: list[TokenizedPair], layout: str) -> list[Tensor]:
    """Each layer's gates of the tokens that a layout reads, each side in a forward of its own."""
    kept: list[list[Tensor]] = []
    for pair in pairs:
        for side, start in ((pair.chosen, 0), (pair.rejected, pair.shared)):
            start = 0 if layout == "separate" else start
            ids = torch.from_numpy(side.ids).long()[None]
            gates = model(input_ids=ids, output_router_logits=True).router_logits
            kept.append([gate[start:] for gate in gates])
    return [torch.cat(layer) for layer in zip(*kept, strict=True)]


@pytest.mark.parametrize(
    ("family", "options", "layout"),
    [
        ("mixtral", {}, "tree"),
        ("qwen3-moe", {"layout": "separate"}, "separate"),
        ("gpt-oss", {}, "tree"),
        ("olmoe", {"gradient_checkpointing": True}, "tree"),
    ],
)
def test_the_gradient_is_that_of_the_tokens_read(
    family: str, options: dict[str, Any], layout: str, tmp_path: Path
) -> None:
    """A prefix that both sides share counts once in a tree, filling tokens never."""
    without, _, _ = gradient(tmp_path, family, 0.0, **options)
    got, made, batches = gradient(tmp_path, family, COEFFICIENT, **options)
    assert made.layout == layout
    model = exact_model(family)
    top_k = model.config.num_experts_per_tok
    balance = [by_definition(read_once(model, pairs, layout), top_k) for pairs in batches]
    want = torch.stack(balance).mean()  # over the batches of the window
    want.backward()
    for name, parameter in model.named_parameters():
        added = 0 if parameter.grad is None else COEFFICIENT * parameter.grad
        # The models' routers compute in fp32 in part.
        torch.testing.assert_close(got[name], without[name] + added, rtol=1e-4, atol=1e-6)
    (line,) = logs_of(made)
    assert line["aux_loss"] == pytest.approx(float(want), rel=1e-5)
    assert float(want) > 1.0
    routers = [n for n in got if "gate.weight" in n or "router.weight" in n]
    assert routers
    assert all((got[n] - without[n]).abs().max() > 1e-4 for n in routers)


def test_supervised_gradients_too(tmp_path: Path) -> None:
    kind = test_supervised.trainer
    without, _, _ = gradient(tmp_path, "mixtral", 0.0, kind)
    got, made, batches = gradient(tmp_path, "mixtral", COEFFICIENT, kind)
    model = exact_model("mixtral")
    balance = []
    for sides in batches:
        gates = [
            model(
                input_ids=torch.from_numpy(side.ids).long()[None], output_router_logits=True
            ).router_logits
            for side in sides
        ]
        balance.append(by_definition([torch.cat(layer) for layer in zip(*gates, strict=True)], 2))
    want = torch.stack(balance).mean()
    want.backward()
    for name, parameter in model.named_parameters():
        added = 0 if parameter.grad is None else COEFFICIENT * parameter.grad
        torch.testing.assert_close(got[name], without[name] + added, rtol=1e-4, atol=1e-6)
    assert logs_of(made)[0]["aux_loss"] == pytest.approx(float(want), rel=1e-5)


def test_evaluation_reports_and_weighs_it(tmp_path: Path) -> None:
    options: dict[str, Any] = {"eval_dataset": ROWS[:4], "per_device_eval_batch_size": 2}
    model = tiny_model("mixtral", scale=3.0)
    off = trainer(tmp_path, copy.deepcopy(model), router_aux_loss_coef=0.0, **options).evaluate()
    on = trainer(tmp_path, model, router_aux_loss_coef=COEFFICIENT, **options).evaluate()
    added = COEFFICIENT * on["eval_aux_loss"]
    assert on["eval_loss"] == pytest.approx(off["eval_loss"] + added, rel=1e-5)
    assert "eval_aux_loss" not in off


@pytest.mark.parametrize("family", ["mixtral", "qwen3-moe", "gpt-oss", "granite-moe"])
def test_output_router_logits_of_a_config_adds_nothing(family: str, tmp_path: Path) -> None:
    """The option alone decides: neither a loss of the model's own comes in, nor a second one."""
    for coefficient in (0.0, COEFFICIENT):
        logged = []
        for flag in (False, True):
            model = tiny_model(family, scale=3.0, output_router_logits=flag)
            run = trainer(tmp_path, model, max_steps=2, router_aux_loss_coef=coefficient)
            run.train()
            logged.append([(line["loss"], line.get("aux_loss")) for line in logs_of(run)])
        assert logged[0] == logged[1]
        assert (logged[0][0][1] is None) == (coefficient == 0)


def test_training_equals_trl(tmp_path: Path) -> None:
    """The config's coefficient, where none is given; each side in full, as TRL reads them."""
    from tests.train.test_trainer_trl import compare, train_with_trl

    small: dict[str, Any] = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    for given in ({}, {"router_aux_loss_coef": COEFFICIENT}):
        model = tiny_model("mixtral", scale=3.0)
        ours = trainer(
            tmp_path / "ours", model, layout="separate", log_entropy=True, **small, **given
        )
        ours.train()
        theirs = train_with_trl(tmp_path / "trl", "mixtral", **small, **given)
        compare(ours, theirs)
        for got, want in zip(logs_of(ours), logs_of(theirs), strict=True):
            assert got["aux_loss"] == pytest.approx(want["aux_loss"], rel=1e-4)
