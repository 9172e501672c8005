"""Row by row sampling against the softmax and the definition of a nucleus."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from prefkit.demo.run import MODEL
from prefkit.errors import PrefkitError
from prefkit.pairs.engines.base import Request, seed_of
from prefkit.pairs.engines.local.engine import LocalEngine
from prefkit.pairs.engines.local.sampling import draws_of, keep_nucleus, pick


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(MODEL)


def first_token_counts(tokenizer, count, **how):
    """(17,) how often each first token came in samples of a random model, and its logits.

    The three special tokens have no text: all are counted as id 2.
    """
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(MODEL, initializer_range=0.08)
    model = AutoModelForCausalLM.from_config(config).eval()
    settings = {"text": "4", "temperature": 1.0, "max_tokens": 1, **how}
    requests = [Request(key=str(i), seed=seed_of(0, str(i)), **settings) for i in range(count)]
    wide = LocalEngine(model, tokenizer=tokenizer, batch_size=count)
    found = [completion.text for completion in wide.sample(requests)]
    with torch.no_grad():
        logits = model(tokenizer("4", return_tensors="pt")["input_ids"]).logits[0, -1]
    texts = [tokenizer.decode([i], skip_special_tokens=True) for i in range(len(logits))]
    assert texts[:3] == ["", "", ""]
    return torch.tensor([0, 0, *(found.count(text) for text in texts[2:])]), logits


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
def test_frequencies_are_the_softmax(tokenizer, temperature):
    counts, logits = first_token_counts(tokenizer, 4000, temperature=temperature)
    expected = 4000 * (logits / temperature).softmax(-1)
    expected = torch.cat([expected[:3].sum()[None], expected[3:]])
    observed = counts[2:]
    assert expected.min() > 5
    chi2 = ((observed - expected) ** 2 / expected).sum()
    freedom = torch.tensor(len(expected) - 1.0)
    assert torch.special.gammaincc(freedom / 2, chi2 / 2) > 0.01


def test_a_nucleus_holds_the_smallest_set(tokenizer):
    counts, logits = first_token_counts(tokenizer, 2000, top_p=0.6)
    order = logits.argsort(descending=True)
    size = int((logits.softmax(-1)[order].cumsum(-1) < 0.6).sum()) + 1
    assert 3 < size < len(logits) - 3
    assert set(counts.nonzero()[:, 0].tolist()) == {max(2, i) for i in order[:size].tolist()}


def test_nucleus_of_a_flat_distribution_goes_past_the_first_look():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5000, generator=generator) * 0.1
    logits[1] *= 100
    probabilities = logits.softmax(-1)
    top_p = torch.tensor([[0.9], [0.5], [0.05]])
    kept = keep_nucleus(probabilities, top_p)
    for row, limit in enumerate(top_p[:, 0].tolist()):
        ordered = probabilities[row].sort(descending=True).values
        size = int((ordered.double().cumsum(0) < limit).sum()) + 1
        assert int((kept[row] > 0).sum()) == size
        assert torch.equal(kept[row][kept[row] > 0].sort(descending=True).values, ordered[:size])


def test_nothing_impossible_is_ever_picked():
    probabilities = torch.tensor([[0.0, 0.5, 0.0, 0.5, 0.0]]).expand(3, -1)
    for dtype in (torch.float64, torch.float32):  # in the second the last draw rounds to 1
        draws = torch.tensor([0.0, 0.5, 1 - 1e-12], dtype=torch.float64).to(dtype)
        assert pick(probabilities, draws).tolist() == [1, 3, 3]
    assert torch.equal(draws_of(7, 3), draws_of(7, 9)[:3])
    with pytest.raises(PrefkitError, match="float16"):
        pick(torch.tensor([[float("nan"), 1.0]]), draws[:1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_greatest_draws_take_the_last_token_whatever_the_mass(dtype):
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.rand(4000, 9, generator=generator) * 3
    probabilities[:, -2:] = 0
    draws = torch.full((4000,), torch.finfo(torch.float64).eps / 2, dtype=torch.float64)
    assert set(pick(probabilities, (1 - draws).to(dtype)).tolist()) == {6}
