"""What the local engine loads: models, adapters, and what it says of those that are not there."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefkit.demo.run import MODEL
from prefkit.errors import ConfigError, ModelError
from prefkit.pairs.engines.base import Request
from prefkit.pairs.engines.local.engine import LocalEngine


def test_an_adapter_folder(tmp_path):
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_pretrained(MODEL)
    config = peft.LoraConfig(r=4, lora_alpha=64, init_lora_weights=False, target_modules=["c_attn"])
    adapted = peft.get_peft_model(base, config).eval()
    adapted.save_pretrained(tmp_path)
    prompt, tokenizer = "59+1+9+7+8+4-5=\n", AutoTokenizer.from_pretrained(MODEL)
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    written = adapted.generate(input_ids=ids, max_new_tokens=20, do_sample=False)[0, ids.shape[1] :]
    expected = tokenizer.decode(written, skip_special_tokens=True)
    request = Request(key="q", text=prompt, temperature=0.0, max_tokens=20, seed=0)
    assert [c.text for c in LocalEngine(str(MODEL)).sample([request])] != [expected]
    for engine in (LocalEngine(str(tmp_path)), LocalEngine(str(MODEL), adapter=str(tmp_path))):
        assert [c.text for c in engine.sample([request])] == [expected]


@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        ({"model": "/nowhere/model"}, ModelError, "/nowhere/model"),
        ({"dtype": "int8"}, ConfigError, "dtype"),
        ({"device": "cuda:77"}, ConfigError, "cuda:77"),
        ({"batch_size": 0}, ConfigError, "batch_size"),
        ({"adapter": "/nowhere/adapter"}, ModelError, "/nowhere/adapter"),
    ],
)
def test_what_cannot_be_loaded_is_named(how, error, words):
    with pytest.raises(error, match=words):
        LocalEngine(**{"model": str(MODEL), **how})
