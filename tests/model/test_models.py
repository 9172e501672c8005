"""Miniatures of the models that most people train: every layout is the model itself.

The truth is plain logits of the model as transformers made it, each sequence alone
(`benchmarks.models.compare`), in fp64: two computations of the same differ by 1e-13 there, whatever
the model casts to fp32. `python -m benchmarks.models --all` does the same for every type of
transformers, with training steps and fp32 besides.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.models.compare import Result
from benchmarks.models.float64 import in_double, in_float64
from benchmarks.models.miniatures import kinds_of, miniature
from benchmarks.models.named import NAMED
from benchmarks.models.one import LIMIT64, deviations, prepared
from prefkit.model.head.transform import LogitTransform


def off_by_layout(
    model: nn.Module, readers: dict[str, nn.Module], transform: LogitTransform
) -> dict[str, float]:
    """The largest deviation from plain logits in fp64."""
    with in_float64():
        for each in {model, *readers.values()}:
            in_double(each)
        return deviations(model, readers, transform)


@pytest.mark.parametrize("model_type", NAMED)
def test_loss_and_gradients_are_those_of_plain_logits(model_type: str) -> None:
    """TDPO on two pairs in a batch, sequences four times the window, all parameters."""
    model = miniature(model_type)
    readers, head, reason = prepared(model)
    assert "shared" in readers, reason
    off = off_by_layout(model, readers, head.transform)
    assert max(off.values()) <= LIMIT64, off


@pytest.mark.parametrize(
    ("model_type", "kinds"),
    [
        ("llama4_text", {"chunked_attention", "full_attention with experts"}),
        ("gemma3n_text", {"sliding_attention", "full_attention"}),
        ("nemotron_h", {"linear_attention", "full_attention", "mlp", "moe with experts"}),
        ("lfm2", {"conv", "full_attention"}),
    ],
)
def test_a_miniature_has_every_kind_of_layer(model_type: str, kinds: set[str]) -> None:
    assert kinds <= set(kinds_of(miniature(model_type)))


def test_attention_is_far_from_uniform() -> None:
    """Else a wrong mask would hardly show: a query's largest weight is three times the mean."""
    model = miniature("llama", attn_implementation="eager")
    with torch.no_grad():
        out = model(input_ids=torch.arange(3, 67)[None], output_attentions=True)
    weights = torch.stack(out.attentions)[..., -1, :]  # of the last query, over 64 keys
    assert float(weights.amax(-1).mean()) > 3 / 64


def leak(module: nn.Module, args: Any, out: Tensor) -> Tensor:
    """A recurrence that knows nothing of where a sequence begins."""
    return out + 1e-6 * out.cumsum(1)


def test_a_layer_that_leaks_between_sequences_is_caught() -> None:
    """Right in padded rows, and off by far more than the limit in shared ones."""
    model = miniature("llama")
    readers, head, _ = prepared(model)
    for each in {model, *readers.values()}:
        each.model.layers[0].mlp.register_forward_hook(leak)
    off = off_by_layout(model, readers, head.transform)
    assert off["padded"] <= LIMIT64
    assert min(off["shared"], off["separate"]) > 100 * LIMIT64


def test_a_deviation_is_a_share_of_the_parameters_own_gradient() -> None:
    truth = Result(2.0, {"large": torch.tensor([4.0]), "small": torch.tensor([0.01, 0.0])})
    off = Result(2.0, {"large": torch.tensor([4.0]), "small": torch.tensor([0.01, 0.001])})
    assert off.deviation(truth) == pytest.approx(0.1)
    assert Result(2.0, {"large": torch.tensor([4.0])}).deviation(truth) == 1.0  # a lost gradient
    assert Result(2.2, truth.grads).deviation(truth) == pytest.approx(0.1)
    broken = Result(2.0, {**truth.grads, "large": torch.tensor([float("nan")])})
    assert broken.deviation(truth) == float("inf")
