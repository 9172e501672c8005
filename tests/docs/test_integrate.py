"""The page on other people's loops: its lines run as they are printed, and say the same loss."""

import copy
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model

from prefkit import (
    DPO,
    KTO,
    TDPO,
    fused_preference_loss,
    preference_loss,
    reference_logp,
    stream_of,
)
from tests.train.trainer_cases import byte_tokenizer, tiny_model

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/integrate.md").read_text("utf-8")


def loops() -> Any:
    """The module that the examples share."""
    file = ROOT / "examples/loops/shared.py"
    spec = importlib.util.spec_from_file_location("loops_shared", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def names() -> Iterator[dict[str, Any]]:
    """What the lines of the page find: a policy that has moved from its reference, and batches."""
    shared = loops()
    rows = shared.pairs()
    model, reference = shared.tiny_model(), shared.tiny_model().requires_grad_(False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)
    padded = shared.collate(rows[:4])
    turns = [0, 2, 4, 6, 1, 3, 5, 7]
    concatenated = {name: value[turns] for name, value in padded.items()}
    of_trl = dict(concatenated)
    of_trl["completion_mask"] = (of_trl.pop("labels") != -100).long()
    labels = torch.cat([padded["labels"][:, 1:], torch.full((8, 1), -100)], dim=1)
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["c_attn"], fan_in_fan_out=True)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield {
        "torch": torch,
        "dist": dist,
        "stream_of": stream_of,
        "preference_loss": preference_loss,
        "model": model,
        "reference": reference,
        "peft_model": get_peft_model(copy.deepcopy(reference), config),
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.0),
        "objective": TDPO(beta=0.1, alpha=0.5),
        "batches": [padded],
        "padded": padded,
        "concatenated": concatenated,
        "of_trl": of_trl,
        "shifted": {**padded, "labels": labels},
        "weights": torch.ones(padded["labels"].shape),
        "batch": stream_of(padded, "interleaved"),
        "window": [stream_of(shared.collate(x), "interleaved") for x in (rows[:1], rows[1:4])],
        "group": dist.group.WORLD,
    }
    dist.destroy_process_group()


def run(heading: str, names: dict[str, Any]) -> None:
    """Runs the lines under a heading of the page."""
    lines = re.search(rf"^#+ {heading}\n.*?```python\n(.*?)```", PAGE, re.M | re.S)
    assert lines is not None
    exec(compile(lines[1], "docs/integrate.md", "exec"), names)


def loss_of(names: dict[str, Any], objective: Any) -> Any:
    return preference_loss(names["model"], names["batch"], objective, names["reference"]).loss


def near(loss: Any) -> Any:
    return pytest.approx(loss.item(), rel=1e-6)


def test_the_call(names: dict[str, Any]) -> None:
    want = loss_of(names, names["objective"])
    run("A model of transformers", names)
    assert names["out"].loss.item() == near(want)


def test_every_batch_is_the_same(names: dict[str, Any]) -> None:
    want = loss_of(names, names["objective"])
    lines = re.search(r"^### Its batches\n.*?```python\n(.*?)```", PAGE, re.M | re.S)
    assert lines is not None
    assert len(lines[1].splitlines()) == 5
    for line in lines[1].splitlines():
        names["batch"] = None
        exec(compile(line, "docs/integrate.md", "exec"), names)
        assert loss_of(names, names["objective"]).item() == near(want)


def test_a_cached_reference_is_the_same(names: dict[str, Any]) -> None:
    want = loss_of(names, DPO(beta=0.1))
    run("Its reference", names)
    assert names["out"].loss.item() == near(want)


def test_kto(names: dict[str, Any]) -> None:
    names["tokenizer"] = tokenizer = byte_tokenizer()
    kinds = zip("1234", (True, False, True, True), strict=True)
    names["rows"] = [{"prompt": f"{n}+0=", "completion": n, "label": kind} for n, kind in kinds]
    names["model"], names["reference"] = (tiny_model(seed=seed, scale=3.0) for seed in (0, 1))
    run("KTO", names)
    beside = names["batch"]["mismatched"]
    assert tokenizer.decode(beside["input_ids"][0], skip_special_tokens=True) == "1+0=4"
    assert names["out"].metrics["kl"] >= 0
    assert torch.isfinite(names["out"].loss)


@pytest.mark.parametrize(
    "objective", [TDPO(beta=0.1, alpha=0.5), KTO(beta=0.1, reference_point=False)]
)
def test_accumulated_gradients_are_those_of_the_whole(objective: Any, names: dict) -> None:
    model, names["objective"] = names["model"], objective
    loss_of(names, names["objective"]).backward()
    want = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    run("The mean over pairs", names)
    scale = max(float(grad.abs().max()) for grad in want.values())
    for name, parameter in model.named_parameters():
        assert (parameter.grad - want[name]).abs().max() < 1e-5 * scale, name


def test_a_model_of_your_own(names: dict[str, Any]) -> None:
    want = loss_of(names, DPO(beta=0.1))
    model, batch = names["model"], names["batch"]
    batch["ref_logp"] = reference_logp(names["reference"], batch)
    names |= {"DPO": DPO, "weight": model.lm_head.weight}
    names["body"] = lambda ids: hidden_of(model, ids)
    run("A model of your own", names)
    assert names["out"].loss.item() == near(want)


def test_a_head_split_by_vocabulary(names: dict[str, Any]) -> None:
    want = loss_of(names, names["objective"])
    for prefix, model in (("", names["model"]), ("ref_", names["reference"])):
        names[f"{prefix}whole"] = model.lm_head.weight
        names[f"{prefix}hidden"] = hidden_of(model, names["batch"]["input_ids"]).flatten(0, 1)
    names["fused_preference_loss"] = fused_preference_loss
    run("A head split by vocabulary", names)
    assert names["out"].loss.item() == near(want)


def test_a_loss_of_your_own(names: dict[str, Any]) -> None:
    run("A loss of your own", names)
    batch = names["batch"]
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    logits = names["model"](**inputs).logits.flatten(0, 1)[batch["positions"]]
    logp = logits.log_softmax(-1)
    likelihood = logp.gather(1, batch["targets"][:, None]).sum()
    entropy = -(logp.exp() * logp).sum(1).mean()
    assert names["loss"].item() == pytest.approx(-likelihood.item(), rel=1e-5)
    assert names["out"].extras["entropy"].item() == pytest.approx(entropy.item(), rel=1e-5)


def hidden_of(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """(R, L, D); rows are padded at their ends, which no earlier token sees."""
    return model.base_model(input_ids=ids, attention_mask=ids != -1).last_hidden_state


@pytest.mark.parametrize("path", re.findall(r"\]\(\.\./(examples/[\w/.]*)\)", PAGE))
def test_every_example_exists(path: str) -> None:
    assert (ROOT / path).is_file()
