"""The fused head computes on the operands of the model's own logits, or refuses the model."""

import copy
import io
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import extract_model_from_parallel
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.llama import LlamaForCausalLM, LlamaModel

from benchmarks.models.miniatures import miniature
from prefkit.errors import ModelError
from prefkit.model.fsdp_units import copy_without_weights
from prefkit.model.head.fused import LogitTransform, find_head, install
from prefkit_kernels import token_stats
from tests.train.trainer_cases import CONFIGS, SHAPE, VOCAB, tiny_model

IDS = torch.tensor([[5, 9, 200, 31, 7], [1, 2, 3, 4, 5]])
TRANSFORMS = {
    "gemma2": LogitTransform(softcap=3.0),
    "cohere": LogitTransform(logit_scale=0.0625),
    "granite": LogitTransform(logit_scale=1 / 8),
}


def request_logp(model: Any, head: Any) -> torch.Tensor:
    """(R·(L − 1),) log-probs of the next tokens through a request."""

    def request(hidden: Any, weight: Any, bias: Any) -> Any:
        flat = hidden[:, :-1].reshape(-1, hidden.shape[-1])
        stats = token_stats(
            flat,
            weight,
            IDS[:, 1:].reshape(-1),
            bias=bias,
            logit_scale=head.transform.logit_scale,
            softcap=head.transform.softcap,
        )
        return stats.logp, {}

    return model(input_ids=IDS, use_cache=False, prefkit_request=request).value


def direct_logp(model: Any) -> torch.Tensor:
    """The same from the model's logits."""
    logp = model(input_ids=IDS, use_cache=False).logits[:, :-1].log_softmax(-1)
    return logp.gather(-1, IDS[:, 1:, None]).reshape(-1)


@pytest.mark.parametrize("family", CONFIGS)
def test_request_equals_logits_with_gradients(family: str) -> None:
    model = tiny_model(family, scale=4.0).double().eval()
    plain = copy.deepcopy(model)
    head = install(model)
    assert head.transform == TRANSFORMS.get(family, LogitTransform())
    got, want = request_logp(model, head), direct_logp(plain)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)
    got.cos().sum().backward()
    want.cos().sum().backward()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-9)


@pytest.mark.parametrize("family", ["llama", "llama-tied", "gemma2"])
def test_a_head_that_peft_trains_in_full(family: str) -> None:
    """The copy of modules_to_save, which has moved, is the head; with the adapter off it is not."""
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], modules_to_save=["lm_head"])
    model = get_peft_model(tiny_model(family, scale=4.0).double(), lora).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    plain = copy.deepcopy(model)
    head = install(model)
    assert head.transform == TRANSFORMS.get(family, LogitTransform())
    got, want = request_logp(model, head), direct_logp(plain)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-10)
    got.cos().sum().backward()
    want.cos().sum().backward()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None) == (not ours.requires_grad)
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-9)
    with torch.no_grad(), model.disable_adapter(), plain.disable_adapter():
        off = request_logp(model, head)
        torch.testing.assert_close(off, direct_logp(plain), rtol=0, atol=1e-10)
    assert (off - got).abs().max() > 1e-2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "gemma2", "cohere"])
def test_low_precision_heads_are_recognised(family: str, dtype: torch.dtype) -> None:
    head = find_head(tiny_model(family).to(dtype))
    assert head.transform == TRANSFORMS.get(family, LogitTransform())


# What the configs of the same name mean: Granite divides, HyperCLOVA X multiplies, and MiniCPM3
# scales what goes into the head.
MEANT = {
    "cohere": LogitTransform(logit_scale=0.0625),
    "gemma2": LogitTransform(softcap=30.0),
    "gemma3n_text": LogitTransform(softcap=30.0),
    "gpt2": LogitTransform(),
    "granite": LogitTransform(logit_scale=1 / 8),
    "hyperclovax": LogitTransform(logit_scale=8.0),
    "minicpm3": LogitTransform(),
}


@pytest.mark.parametrize("kind", MEANT)
def test_a_model_without_weights_has_the_transform_of_its_class(kind: str) -> None:
    if kind not in CONFIG_MAPPING:
        pytest.skip(f"this version of transformers has no {kind}")
    scaled = {"logits_scaling": 8.0} if kind in ("granite", "hyperclovax") else {}
    model = miniature(kind, **scaled)
    assert find_head(model).transform == MEANT[kind]
    model.get_output_embeddings().weight.ds_id = 1  # as ZeRO-3 marks what it partitions
    assert find_head(model).transform == MEANT[kind]
    assert find_head(copy_without_weights(model)).transform == MEANT[kind]


def test_without_weights_and_a_copy_a_config_that_may_mean_two_things_is_refused() -> None:
    class Own(LlamaForCausalLM):
        def __init__(self, config: Any, more: Any) -> None:
            super().__init__(config)

    with torch.device("meta"):
        model = Own(CONFIGS["llama"](), None)
        assert find_head(model).transform == LogitTransform()
        model.config.logits_scaling = 8.0
        with pytest.raises(ModelError, match=r"Own.*several things.*install"):
            find_head(model)
        with pytest.raises(ModelError, match="HiddenCap"):
            find_head(HiddenCap(CONFIGS["llama"]()))


RECURRENT: dict[str, Any] = {
    "recurrent_gemma": {**SHAPE, "lru_width": 16, "attention_window_size": 8},
    "xlstm": {
        "hidden_size": 16,
        "num_blocks": 1,
        "num_heads": 2,
        "mlstm_round_up_to_multiple_of": 8,
    },
}


@pytest.mark.parametrize("kind", RECURRENT)
def test_softcaps_of_recurrent_models_are_read_and_trained(kind: str) -> None:
    """Each has a name of its own for it; their recurrences are computed in fp32."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, vocab_size=VOCAB, **RECURRENT[kind])
    model = AutoModelForCausalLM.from_config(config).train()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(1000)  # far into the cap of 30
    plain = copy.deepcopy(model)
    head = install(model)
    assert head.transform == LogitTransform(softcap=30.0)
    got, want = request_logp(model, head), direct_logp(plain)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    got.cos().sum().backward()
    want.cos().sum().backward()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        if ours.grad is not None:
            scale = theirs.grad.abs().max().clamp_min(1e-6)
            torch.testing.assert_close(ours.grad / scale, theirs.grad / scale, rtol=0, atol=1e-3)


def test_without_a_request_nothing_changes(tmp_path: Path) -> None:
    model = tiny_model("gemma2").eval()
    before, keys = model(input_ids=IDS).logits, list(model.state_dict())
    install(model)
    install(model)
    assert torch.equal(model(input_ids=IDS).logits, before)
    assert list(model.state_dict()) == keys
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["architectures"] == ["Gemma2ForCausalLM"]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(input_ids=IDS).logits, before)


def test_a_head_that_was_replaced_is_found_again() -> None:
    model = tiny_model(scale=3.0).eval()
    head = install(model)
    assert install(model) is head
    model.resize_token_embeddings(VOCAB + 8)
    again = install(model)
    assert (head.vocab_size, again.vocab_size) == (VOCAB, VOCAB + 8)
    torch.testing.assert_close(request_logp(model, again), direct_logp(model))


def test_generation_still_works() -> None:
    model = tiny_model().eval()
    before = model.generate(IDS[:1], max_new_tokens=4, do_sample=False)
    install(model)
    assert torch.equal(model.generate(IDS[:1], max_new_tokens=4, do_sample=False), before)


def test_a_copy_answers_from_its_own_weights() -> None:
    model = tiny_model().eval()
    head = install(model)
    twin = copy.deepcopy(model)
    before = request_logp(twin, head)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert torch.equal(request_logp(twin, head), before)


@pytest.mark.parametrize("how", ["pickle", "torch.save", "twice"])
@pytest.mark.parametrize("kind", ["llama", "gemma2", "adapter with a head"])
def test_a_model_from_a_file_is_plain_until_it_is_installed_again(kind: str, how: str) -> None:
    head_too = LoraConfig(
        task_type="CAUSAL_LM", target_modules=["q_proj"], modules_to_save=["lm_head"]
    )
    model = tiny_model(scale=3.0) if "adapter" in kind else tiny_model(kind, scale=3.0)
    model = (get_peft_model(model, head_too) if "adapter" in kind else model).eval()
    head = install(model)
    want, logits = request_logp(model, head), model(input_ids=IDS).logits
    loaded = model
    for _ in range(2 if how == "twice" else 1):
        if how == "pickle":
            loaded = pickle.loads(pickle.dumps(loaded))
        else:
            file = io.BytesIO()
            torch.save(loaded, file)
            file.seek(0)
            loaded = torch.load(file, weights_only=False)
    assert torch.equal(loaded(input_ids=IDS).logits, logits)
    again = install(loaded)
    assert again.transform == head.transform
    assert again.owner is not head.owner
    assert torch.equal(request_logp(loaded, again), want)
    assert torch.equal(request_logp(copy.deepcopy(loaded), again), want)
    assert torch.equal(loaded(input_ids=IDS).logits, logits)


def test_head_is_called_as_a_module_once() -> None:
    model = tiny_model().eval()
    head = install(model)
    seen: list[Any] = []
    head.module.register_forward_hook(lambda *_: seen.append("hook"))
    request_logp(model, head)
    assert seen == ["hook"]


class Passing(torch.autograd.Function):
    """Returns its input and notes when the gradient comes back, as ZeRO-3 wraps outputs."""

    @staticmethod
    def forward(ctx: Any, output: torch.Tensor, seen: list[str]) -> torch.Tensor:
        ctx.seen = seen
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        ctx.seen.append("wrapped output")
        return grads[0], None


@pytest.mark.parametrize("family", ["llama", "gemma2", "cohere", "granite"])
@pytest.mark.parametrize("return_dict", [True, False])
def test_backward_passes_the_output_of_the_head_first(family: str, return_dict: bool) -> None:
    """Sharding gathers the weight in hooks on the head's output; the loss's backward reads it."""
    model = tiny_model(family).eval()
    head, seen = install(model), []

    def on_output(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        assert output._base is None  # a view could lose its hooks
        output.register_hook(lambda _: seen.append("output"))
        return Passing.apply(output, seen)

    def request(hidden: Any, weight: Any, bias: Any) -> Any:
        hidden.register_hook(lambda _: seen.append("hidden"))
        return (hidden @ weight.T).square().mean(), {}

    head.module.register_forward_hook(on_output)
    model(input_ids=IDS, prefkit_request=request, return_dict=return_dict).value.backward()
    assert seen == ["wrapped output", "output", "hidden"]


def test_a_compiled_model_is_one_graph_with_its_head() -> None:
    model = tiny_model(scale=3.0).eval()
    head = install(model)
    want = request_logp(model, head)
    want.sum().backward()
    grad, model.lm_head.weight.grad = model.lm_head.weight.grad, None
    got = request_logp(torch.compile(model, fullgraph=True, backend="aot_eager"), head)
    got.sum().backward()
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(model.lm_head.weight.grad, grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_value_of_any_shape_and_dtype_comes_out_as_it_went_in(dtype: torch.dtype) -> None:
    model = tiny_model().to(torch.bfloat16)
    value = torch.randn(3, 2, dtype=dtype)
    install(model)
    output = model(input_ids=IDS, prefkit_request=lambda *_: (value, {"extra": value}))
    assert output.value.dtype == dtype
    assert torch.equal(output.value, value)
    assert output.extras["extra"] is value


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ("a name", "must be a function, got 'a name'"),
        (lambda hidden, *_: hidden, r"must return \(value, extras\).*got Tensor"),
        (lambda *_: None, r"must return \(value, extras\).*got NoneType"),
        (lambda hidden, *_: (1.0, {}), r"must return \(value, extras\).*got tuple"),
        (lambda hidden, *_: (hidden.sum(), {"mean": hidden.mean()}), "returned mean with a grad"),
    ],
)
def test_what_a_request_may_not_be_or_return(request_: Any, words: str) -> None:
    model = tiny_model()
    install(model)
    with pytest.raises((TypeError, ValueError), match=words):
        model(input_ids=IDS, prefkit_request=request_)
    with pytest.raises(TypeError, match="labels beside prefkit_request"):
        model(input_ids=IDS, labels=IDS, prefkit_request=lambda hidden, *_: (hidden.sum(), {}))


def test_a_failing_request_leaves_the_model_usable() -> None:
    model = tiny_model().eval()
    before = model(input_ids=IDS).logits
    install(model)

    def fails(*_: Any) -> Any:
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        model(input_ids=IDS, prefkit_request=fails)
    assert torch.equal(model(input_ids=IDS).logits, before)


def test_through_lora_gradient_checkpointing_and_autocast() -> None:
    base = tiny_model()
    peft = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"))
    head = install(peft)
    peft.enable_input_require_grads()
    peft.gradient_checkpointing_enable()
    with torch.autocast("cpu", torch.bfloat16):
        got = request_logp(peft.train(), head)
    got.sum().backward()
    assert got.dtype == torch.float32
    trained = [name for name, p in peft.named_parameters() if p.grad is not None]
    assert trained
    assert all("lora_" in name for name in trained)
    torch.testing.assert_close(got, direct_logp(peft.eval()), rtol=0.02, atol=0.05)


@pytest.mark.parametrize("first", ["install", "prepare"])
def test_accelerate_does_not_take_the_head_off(first: str) -> None:
    from types import MethodType

    from accelerate.utils.operations import convert_outputs_to_fp32

    model, plain = tiny_model().eval(), tiny_model().eval()
    before, logits = request_logp(plain, install(plain)), plain(input_ids=IDS).logits
    if first == "install":
        install(model)
    # What Accelerator.prepare_model does for mixed precision, then what unwrap_model undoes.
    model._original_forward = model.forward
    wrapped = torch.autocast("cpu", torch.bfloat16)(model.forward.__func__)
    model.forward = MethodType(convert_outputs_to_fp32(wrapped), model)
    head = install(model)
    rounded = request_logp(model, head)
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, before)
    extract_model_from_parallel(model, keep_fp32_wrapper=False)
    # With the head put in last, what accelerate put around the forward before stays.
    bound = 0.05 if first == "prepare" else 0.0
    torch.testing.assert_close(request_logp(model, head), before, rtol=0, atol=bound)
    torch.testing.assert_close(model(input_ids=IDS).logits, logits, rtol=0, atol=bound)


class Shifted(LlamaForCausalLM):
    """Changes its logits in a way no config tells."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.logits = output.logits + 1.5 * torch.arange(output.logits.shape[-1])
        return output


class HiddenCap(LlamaForCausalLM):
    """Caps its logits; invisible on small logits, so only known ones can show it."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.logits = 30 * torch.tanh(output.logits / 30)
        return output


class TwoLayerHead(nn.Linear):
    """A linear layer that is not only linear."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden).relu()


def adapted(**where: Any) -> Any:
    return get_peft_model(tiny_model(), LoraConfig(task_type="CAUSAL_LM", **where))


def with_head(head: nn.Module) -> Any:
    model = tiny_model()
    model.set_output_embeddings(head)
    return model


def int8_head() -> Any:
    head = nn.Linear(16, VOCAB, bias=False)
    head.weight = nn.Parameter(torch.zeros(VOCAB, 16, dtype=torch.int8), requires_grad=False)
    return with_head(head)


REFUSED = {
    "adapter on the head": (
        lambda: adapted(target_modules=["q_proj", "lm_head"]),
        ["adapter", "lm_head", "target_modules"],
    ),
    "no head": (lambda: LlamaModel(CONFIGS["llama"]()), ["LlamaModel", "AutoModelForCausalLM"]),
    "logits shifted": (lambda: Shifted(CONFIGS["llama"]()), ["Shifted", "config"]),
    "logits capped": (lambda: HiddenCap(CONFIGS["llama"]()), ["HiddenCap", "softcap"]),
    "a stack of layers": (
        lambda: with_head(nn.Sequential(nn.Linear(16, 16), nn.Linear(16, VOCAB))),
        ["Sequential", "linear"],
    ),
    "not only linear": (lambda: with_head(TwoLayerHead(16, VOCAB)), ["TwoLayerHead"]),
    "one process for several GPUs": (
        lambda: nn.DataParallel(tiny_model()),
        ["nn.DataParallel", "DistributedDataParallel"],
    ),
    "quantised head": (int8_head, ["quantised", "int8"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_odd_heads_are_refused_by_name(case: str) -> None:
    make, words = REFUSED[case]
    with pytest.raises(ModelError) as error:
        install(make())
    assert all(word in str(error.value) for word in words), str(error.value)


def test_bias_and_training_mode_are_kept() -> None:
    model = tiny_model()
    model.set_output_embeddings(nn.Linear(SHAPE["hidden_size"], VOCAB, bias=True))
    model.train()
    head = install(model)
    assert model.training
    torch.testing.assert_close(request_logp(model, head), direct_logp(model), rtol=0, atol=1e-5)
