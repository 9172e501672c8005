"""The local engine against plain `generate`; its sampling is in test_build_row_sampling.py."""

import itertools
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from prefkit.demo.run import MODEL
from prefkit.errors import ConfigError
from prefkit.pairs.engines.base import SHORTENED, Request, cut_at_stop, seed_of
from prefkit.pairs.engines.local.engine import LocalEngine

PROMPTS = ("59+1+9+7+8+4-5=\n", "27-5-5-2+8-6+6=\n", "12+3=\n", "4-", "27-5-5-2+8-6+6=\n27-5=22\n")


def ask(key, text, *, seed=None, temperature=1.0, max_tokens=52, **more):
    seed = seed_of(0, key) if seed is None else seed
    return Request(
        key=key, text=text, temperature=temperature, max_tokens=max_tokens, seed=seed, **more
    )


def run(engine, requests):
    """Completions by key, through the engine's own batches."""
    found = {}
    for batch in engine.batches(requests):
        for completion in engine.sample(batch):
            assert completion.key not in found
            found[completion.key] = completion
    assert set(found) == {request.key for request in requests}
    return found


@pytest.fixture(scope="module")
def tiny():
    return LocalEngine(str(MODEL), batch_size=8)


@pytest.fixture(scope="module")
def real(smollm2):
    return LocalEngine(str(smollm2), batch_size=8)


def mixed(prompts, samples, **more):
    """Greedy, plain, nucleus and warm samples of every prompt, in one stage."""
    settings = [{"temperature": 0.0}, {}, {"top_p": 0.8}, {"temperature": 1.6, "top_p": 0.95}]
    return [
        ask(f"q{i}/sample/{j}", text, **{**settings[j % 4], **more})
        for i, text in enumerate(prompts)
        for j in range(samples)
    ]


def test_a_text_does_not_depend_on_those_beside_it(tiny):
    requests = mixed(PROMPTS, 6)
    together = run(tiny, requests)
    assert together == run(tiny, requests)
    for request in requests[::2] + requests[1::4]:
        assert list(tiny.sample([request])) == [together[request.key]]
    assert {c.finish for c in together.values()} == {"end", "length"}  # rows end at many places


def test_a_real_model_too(real):
    prompts = (
        "Natalia sold clips to 48 of her friends in April.",
        "Question: 3+4?\nAnswer:",
        "The",
    )
    requests = mixed(prompts, 3, max_tokens=9, stop=("\n\n",))
    together = run(real, requests)
    alone = [c for request in requests[::2] for c in real.sample([request])]
    assert alone == [together[c.key] for c in alone]


def test_greedy_is_generates_greedy(tiny):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(MODEL), tiny.tokenizer
    found = run(tiny, [ask(text, text, temperature=0.0) for text in PROMPTS])
    for text in PROMPTS:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        most = min(52, 72 - ids.shape[1])
        written = model.generate(ids, max_new_tokens=most, do_sample=False)[0, ids.shape[1] :]
        assert found[text].text == tokenizer.decode(written, skip_special_tokens=True)
        assert found[text].tokens == len(written)


def test_greedy_is_generates_greedy_with_a_real_model(real):
    text = "Question: A robe takes 2 bolts of blue fiber and half that much white.\nAnswer:"
    model = real._model
    ids = real.tokenizer(text, return_tensors="pt")["input_ids"]
    written = model.generate(ids, max_new_tokens=16, do_sample=False)[0, ids.shape[1] :]
    (found,) = real.sample([ask("q", text, temperature=0.0, max_tokens=16)])
    assert found.text == real.tokenizer.decode(written, skip_special_tokens=True)
    assert text + found.text == real.tokenizer.decode([*ids[0], *written], skip_special_tokens=True)


def test_stop_texts_never_stay(tiny):
    stops = ("\n", "=3")  # a token is a character here
    whole = run(tiny, mixed(PROMPTS[:2], 4))
    for key, completion in run(tiny, mixed(PROMPTS[:2], 4, stop=stops)).items():
        text, stopped = cut_at_stop(whole[key].text, stops)
        assert stopped
        assert (completion.text, completion.finish) == (text, "stop")
        after = whole[key].text[len(text) :]
        assert completion.tokens == len(text) + (2 if after.startswith("=3") else 1)


def test_a_stop_text_over_several_tokens(real):
    text = "Count: one, two, three,"
    (whole,) = real.sample([ask("q", text, temperature=0.0, max_tokens=12)])
    stop = whole.text[7:16]
    assert len(real.tokenizer(stop)["input_ids"]) > 1
    (found,) = real.sample([ask("q", text, temperature=0.0, max_tokens=12, stop=(stop,))])
    assert (found.text, found.finish) == (whole.text[:7], "stop")
    assert found.tokens < whole.tokens


def test_lengths(tiny):
    found = run(tiny, [ask(f"q/s/{n}", "59+1+9=\n", max_tokens=n) for n in (1, 3, 5, 500)])
    assert [found[f"q/s/{n}"].tokens for n in (1, 3, 5)] == [1, 3, 5]
    assert {found[f"q/s/{n}"].finish for n in (1, 3, 5)} == {"length"}
    full = "1+" * 35  # 70 of 72 positions
    (found,) = tiny.sample([ask("q", full, max_tokens=500)])
    assert found.tokens <= 2


def test_a_prompt_too_long_is_refused_before_anything_is_sampled(tiny):
    requests = [ask("fine", "1+1="), ask("long/s/0", "1+" * 36)]
    with pytest.raises(ConfigError, match=r"long/s/0.*72 tokens.*at most 72"):
        tiny.batches(requests)
    with pytest.raises(ConfigError, match=r"empty/s/0.*empty"):
        next(tiny.sample([ask("empty/s/0", "")]))
    texts = {"fine": True, "1+" * 35 + "1": True, "1+" * 36: False}
    assert {text: tiny.fits(ask("q", text)) for text in texts} == texts


def test_what_is_shortened_to_the_context_is_counted(tiny):
    before = tiny.notes[SHORTENED]
    list(tiny.sample([ask("a", "12+3=\n", max_tokens=66), ask("b", "12+3=\n", max_tokens=67)]))
    assert tiny.notes[SHORTENED] == before + 1  # 6 tokens and 66 are the 72 positions


def test_threads_sample_one_batch_at_a_time(tiny, monkeypatch):
    """A judge beside a server is asked from many threads: never two caches at once."""
    batches = [mixed(PROMPTS[number : number + 2], 3) for number in range(4)]
    expected = [list(tiny.sample(batch)) for batch in batches]
    mine, writers, write = threading.local(), [], LocalEngine._write

    def watched(self, rows, cache):
        writers.append(mine.number)
        time.sleep(0.002)  # another thread's turn
        return write(self, rows, cache)

    def sample(number):
        mine.number = number
        return list(tiny.sample(batches[number]))

    monkeypatch.setattr(LocalEngine, "_write", watched)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(sample, range(4))) == expected
    assert len(writers) > 4  # there were turns to take: rows left in the middle of a batch
    assert len(list(itertools.groupby(writers))) == 4


def test_transformers_has_nothing_to_warn_of(tiny, caplog):
    """Wider than the positions by padding alone: no row is."""
    from transformers.utils import logging as transformers_logging

    stopping = logging.getLogger("transformers.generation.stopping_criteria")
    type(stopping).warning_once.cache_clear()
    transformers_logging.enable_propagation()
    try:
        with caplog.at_level(logging.WARNING, logger="transformers"):
            list(tiny.sample([ask("a", "1+" * 35, max_tokens=80), ask("b", "12+", max_tokens=80)]))
            run(tiny, mixed(PROMPTS, 2))
    finally:
        transformers_logging.disable_propagation()
    assert caplog.messages == []
    assert not stopping.filters


def test_batches_depend_on_the_requests_alone(tiny):
    requests = mixed(PROMPTS, 6)
    batches = tiny.batches(requests)
    assert tiny.batches(requests[::-1]) == batches
    assert [len(batch) for batch in batches] == [8, 8, 8, 6]


def test_the_models_own_settings_and_random_state_are_left_alone(tiny):
    model = AutoModelForCausalLM.from_pretrained(MODEL)
    model.generation_config.top_k = 1
    model.generation_config.repetition_penalty = 5.0
    model.train()
    engine = LocalEngine(model, tokenizer=tiny.tokenizer)
    set_seed(3)
    expected = torch.rand(1)
    set_seed(3)
    request = ask("q", "12+3=\n", temperature=1.5)
    assert list(engine.sample([request])) == list(tiny.sample([request]))
    assert torch.equal(torch.rand(1), expected)
    assert (model.generation_config.top_k, model.training) == (1, True)


def test_chat_text_gets_no_special_tokens(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    tokenizer.bos_token = "<eos>"
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<eos> $A", special_tokens=[("<eos>", 1)]
    )
    engine = LocalEngine(AutoModelForCausalLM.from_pretrained(MODEL), tokenizer=tokenizer)
    plain = tokenizer("1+1=", add_special_tokens=False)["input_ids"]
    assert engine._check(ask("q", "1+1=")) == [1, *plain]
    assert engine._check(ask("q", "1+1=", is_chat=True)) == plain
    judged = Request(
        key="q",
        messages=({"role": "user", "content": "1+1="},),
        temperature=0,
        max_tokens=3,
        seed=0,
    )
    assert engine._check(judged) == tokenizer("1+1=\n", add_special_tokens=False)["input_ids"]


def test_a_turn_ends_as_the_chat_template_ends_it(tiny):
    """Training teaches the template's own end of turn, which need not be the tokenizer's EOS."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %}<unk>"
        "{% endif %}{% endfor %}"
    )
    model = AutoModelForCausalLM.from_pretrained(MODEL)
    assert tiny._ends == {1}
    assert LocalEngine(model, tokenizer=tokenizer)._ends == {1, 2}
    assert LocalEngine(model, tokenizer=tokenizer, end_ids=[7])._ends == {1, 2, 7}


def test_a_space_in_front_of_a_completion_is_kept():
    """As Llama-2 and Mistral have them: "▁word", and a decoder that drops the first space."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    words = {"<s>": 0, "▁the": 1, "▁sum": 2, "▁is": 3, "</s>": 4}
    backend = Tokenizer(models.WordLevel(words, unk_token="<s>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    assert tokenizer.decode([3]) == "is"
    model = GPT2LMHeadModel(GPT2Config(vocab_size=5, n_embd=8, n_layer=1, n_head=1, n_positions=16))
    engine = LocalEngine(model, tokenizer=tokenizer)
    assert engine._text_of([1, 2], [3, 1]) == " is the"
