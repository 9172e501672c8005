"""Weights packed into tensor subclasses, as torchao quantises: hashed by their parts; no heads."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor

from prefkit.errors import ModelError
from prefkit.model.head.fused import install
from prefkit.model.reference.fingerprints import fingerprint_model
from tests.train.trainer_cases import logs_of, save_model, tiny_model, trainer


def packed(seed: int) -> Any:
    """A layer whose weight is a tensor made of two others."""
    layer = nn.Linear(4, 3, bias=False)
    torch.manual_seed(seed)
    parts = torch.zeros(3, 4), torch.randn(3, 4)
    layer.weight = nn.Parameter(TwoTensor(*parts), requires_grad=False)
    return layer


def test_a_fingerprint_reads_all_parts_of_a_packed_tensor() -> None:
    assert fingerprint_model(packed(0)) == fingerprint_model(packed(0))
    assert fingerprint_model(packed(0)) != fingerprint_model(packed(1))


def test_a_packed_head_is_refused_by_name() -> None:
    model = tiny_model()
    weight = model.lm_head.weight.detach()
    model.lm_head.weight = nn.Parameter(TwoTensor(weight, weight.clone()), requires_grad=False)
    with pytest.raises(ModelError, match=r"quantised .*TwoTensor.*modules_to_not_convert"):
        install(model)


def quantised(folder: Path, **options: Any) -> Any:
    """A small model of int8 weights, the head's too where it is not to be left out."""
    pytest.importorskip("torchao", reason="torchao is not installed: pip install torchao")
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import AutoModelForCausalLM, TorchAoConfig

    asked = TorchAoConfig(Int8WeightOnlyConfig(), **options)
    return AutoModelForCausalLM.from_pretrained(save_model(folder), quantization_config=asked)


def test_int8_weights_of_torchao_train_an_adapter(tmp_path: Path) -> None:
    model = quantised(tmp_path / "model")
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"])
    run = trainer(tmp_path, model, peft_config=lora, max_steps=1)
    run.train()
    assert logs_of(run)[0]["loss"] == pytest.approx(0.6931, abs=1e-4)  # ln 2 nats
    assert run.models.reference_id is not None


def test_an_int8_head_of_torchao_is_refused(tmp_path: Path) -> None:
    model = quantised(tmp_path / "model")
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(model.lm_head, Int8WeightOnlyConfig())
    with pytest.raises(ModelError, match=r"the head is quantised \(Linear, Int8Tensor\)"):
        install(model)
