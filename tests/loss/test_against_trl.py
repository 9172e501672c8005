"""Loss, gradients and metrics of the fused loss against TRL's own DPOTrainer on TRL's own batch.

A real two-layer Llama, TRL's tokenisation, collation and loss; then the same batch, weights and
reference through `fused_preference_loss`. Bounds are fp32 rounding.

One trainer serves all cases: what TRL reads of its options while it computes a loss are fields of
the trainer, which are set here as its constructor sets them.
"""

from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from prefkit import DPO, fused_preference_loss
from prefkit.loss.fused import PreferenceLoss
from prefkit.loss.loss_types import LOSS_TYPES

trl = pytest.importorskip("trl", reason="TRL is not installed")
ROWS = [
    {"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5, I think"},
    {"prompt": "The capital of France is", "chosen": " Paris, on the Seine", "rejected": " Rome"},
    {"prompt": "Count:", "chosen": " 1 2 3", "rejected": " 1 3 2"},
]
BETA, MOVED = 0.3, 0.01
TRLS = [name for name in LOSS_TYPES if name != "plackett_luce"]
OF_DIFFERENCE = [n for n in TRLS if LOSS_TYPES[n].of == "margin" or n == "sft"]
BY_PAIR = [name for name in TRLS if LOSS_TYPES[name].of != "batch"]
SMOOTHED = ("robust", "exo_pair", "aot", "aot_unpaired")


def case(*names: str, **options: Any) -> dict[str, Any]:
    """Options of both, with label_smoothing where both read it: TRL's sigmoid does not."""
    if {*names} & {*SMOOTHED}:
        assert not {*names} & {"sigmoid", "sigmoid_norm"}
        options["label_smoothing"] = 0.2
    return {"loss_type": [*names], **options}


WELL_CONDITIONED = ("sigmoid", "ipo", "robust", "hinge", "sigmoid_norm")
WITH_EPSILON = [name for name in TRLS if name not in ("sigmoid", "sigmoid_norm")]
WITHOUT = [name for name in TRLS if name not in SMOOTHED]
CASES: dict[str, dict[str, Any]] = {
    **{name: case(name) for name in TRLS},
    **{f"{name}, LD": case(name, ld_alpha=0.4) for name in TRLS},
    **{f"{name}, WPO": case(name, use_weighting=True) for name in BY_PAIR},
    **{
        f"{name}, {divergence}": case(name, f_divergence_type=divergence)
        for name in OF_DIFFERENCE
        for divergence in ("forward_kl", "js_divergence", "alpha_divergence")
    },
    "alpha 1": case("hinge", f_divergence_type="alpha_divergence", f_alpha_divergence_coef=1.0),
    "alpha 1.5": case("ipo", f_divergence_type="alpha_divergence", f_alpha_divergence_coef=1.5),
    "tau": case("discopop", discopop_tau=0.7),
    "MPO": case("sigmoid", "bco_pair", "sft", loss_weights=[0.8, 0.2, 1.0]),
    "one margin": case("robust", "hinge", "discopop", loss_weights=[0.5, 0.25, 2.0]),
    "means and sums": case("ipo", "hinge", "sigmoid_norm", ld_alpha=0.0),
    "all": case(*WITH_EPSILON, loss_weights=[1 / (k + 1) for k in range(len(WITH_EPSILON))]),
    "EXO in a list": case("exo_pair", "hinge", "ipo", "sft", loss_weights=[1.0, 0.5, 0.1, 0.2]),
    "all without smoothing": case(*WITHOUT, ld_alpha=0.3),
    "WPO of several": case("ipo", "apo_down", "nca_pair", use_weighting=True, ld_alpha=0.7),
    "js of several": case("sigmoid", "ipo", "sft", f_divergence_type="js_divergence"),
}


def byte_tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: k for k, token in enumerate(["<eos>", "<pad>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>")


def small_llama(tie: bool, moved: float = 0.0) -> LlamaForCausalLM:
    """A random model; a reference is moved by some noise.

    So its log-ratios are about 1: forward_kl takes the exponential of them, and of rounding.
    """
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=258,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        tie_word_embeddings=tie,
        initializer_range=0.3,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(moved * torch.randn_like(parameter))
    return model


class Run:
    """A trainer of TRL's, its batch, and the same two models for ours."""

    def __init__(self, folder: str, tie: bool) -> None:
        args = trl.DPOConfig(
            output_dir=folder,
            per_device_train_batch_size=len(ROWS),
            use_cpu=True,
            bf16=False,
            report_to="none",
            gradient_checkpointing=False,
            use_weighting=True,  # or its head would not compute what that needs
        )
        self.trainer = trl.DPOTrainer(
            model=small_llama(tie),
            ref_model=small_llama(tie, MOVED),
            args=args,
            train_dataset=Dataset.from_list(ROWS),
            processing_class=byte_tokenizer(),
        )
        self.batch = next(iter(self.trainer.get_train_dataloader()))
        self.kept = {k: x.clone() for k, x in self.batch.items() if isinstance(x, Tensor)}
        self.policy = small_llama(tie)
        self.reference = small_llama(tie, MOVED).requires_grad_(False)

    def theirs(self, **options: Any) -> tuple[float, dict[str, Tensor] | None]:
        """TRL's loss and gradients; the loss alone where it has no gradient."""
        trainer = self.trainer
        trainer.loss_types = options["loss_type"]
        trainer.loss_weights = options.get("loss_weights") or [1.0] * len(trainer.loss_types)
        trainer.beta, trainer.label_smoothing = BETA, options.get("label_smoothing", 0.0)
        trainer.ld_alpha = options.get("ld_alpha")
        trainer.f_divergence_type = options.get("f_divergence_type", "reverse_kl")
        trainer.f_alpha_divergence_coef = options.get("f_alpha_divergence_coef", 0.5)
        trainer.use_weighting = options.get("use_weighting", False)
        trainer.args.discopop_tau = options.get("discopop_tau", 0.05)
        trainer.model.zero_grad()
        trainer._metrics["train"].clear()
        loss = trainer.compute_loss(trainer.model, dict(self.batch))
        if trainer.use_weighting and "hinge" in trainer.loss_types:
            return float(loss.detach()), None  # written over by its weights: backward raises
        loss.backward()
        grads = {name: p.grad.clone() for name, p in trainer.model.named_parameters()}
        return float(loss.detach()), grads

    def ours(self, objective: DPO) -> PreferenceLoss:
        """Ours on the same batch; the gradients are in `policy`."""
        policy, reference, batch = self.policy, self.reference, self.kept
        policy.zero_grad()
        ids, mask = batch["input_ids"], batch["attention_mask"]
        pairs = len(ids) // 2  # TRL's rows: all chosen, then all rejected
        side = torch.cat([2 * torch.arange(pairs), 2 * torch.arange(pairs) + 1])[:, None]
        segments = torch.where(batch["completion_mask"].bool(), side, -1)[:, 1:].flatten()
        hidden = policy.model(input_ids=ids, attention_mask=mask).last_hidden_state[:, :-1]
        ref_hidden = reference.model(input_ids=ids, attention_mask=mask).last_hidden_state[:, :-1]
        out = fused_preference_loss(
            hidden.flatten(0, 1),
            policy.lm_head.weight,
            ids[:, 1:].flatten(),
            segments,
            objective,
            ref_hidden=ref_hidden.flatten(0, 1),
            ref_weight=reference.lm_head.weight,
            log_entropy=True,
        )
        out.loss.backward()
        return out

    def compare(self, objective: DPO, options: dict[str, Any], well_conditioned: bool) -> None:
        """Fails where loss or gradients differ by more than rounding, and what magnifies it."""
        of_loss, of_grads = (2e-6, 1e-5) if well_conditioned else (1e-5, 1e-4)
        expected, grads = self.theirs(**options)
        out = self.ours(objective)
        assert out.loss.item() == pytest.approx(expected, rel=of_loss)
        if grads is None:
            return
        found = dict(self.policy.named_parameters())
        assert found.keys() == grads.keys()
        scale = max(float(g.abs().max()) for g in grads.values())
        assert scale > 0
        for name, grad in grads.items():
            assert (found[name].grad - grad).abs().max() <= of_grads * scale, name


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(str(tmp_path_factory.mktemp("trl")), request.param)


@pytest.mark.parametrize("name", CASES)
def test_same_loss_and_gradients_as_trl(name: str, run: Run) -> None:
    run.compare(DPO(beta=BETA, **CASES[name]), CASES[name], name in WELL_CONDITIONED)


@pytest.mark.parametrize("name", ["exo_pair", "hinge"])
def test_smoothing_of_a_list_with_sigmoid(name: str, run: Run) -> None:
    """label_smoothing ε beside sigmoid: TRL leaves its ℓ(u) as it is, prefkit smooths it as well.

    (1 − ε) ℓ(u) + ε ℓ(−u) is 2(1 − ε) sigmoid − (1 − 2ε) robust of TRL's, which does smooth robust.
    """
    epsilon = 0.2
    theirs = {
        "loss_type": ["sigmoid", "robust", name],
        "loss_weights": [2 * (1 - epsilon), -(1 - 2 * epsilon), 1.0],
        "label_smoothing": epsilon,
    }
    ours = DPO(beta=BETA, loss_type=["sigmoid", name], label_smoothing=epsilon)
    run.compare(ours, theirs, well_conditioned=False)


@pytest.mark.parametrize("name", WELL_CONDITIONED)
def test_same_metrics_as_trl(name: str, run: Run) -> None:
    run.theirs(**CASES[name])
    expected = {k: values[0] for k, values in run.trainer._metrics["train"].items()}
    found = run.ours(DPO(beta=BETA, **CASES[name])).metrics
    assert expected.keys() - found.keys() == {"num_tokens"}  # the trainer's
    for metric, value in found.items():
        assert float(value) == pytest.approx(expected[metric], rel=2e-5, abs=1e-6), metric
