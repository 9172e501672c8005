"""Loss, gradients and metrics of the fused loss against TRL's own DPOTrainer on TRL's own batch.

A real two-layer Llama, TRL's tokenisation, collation and loss; then the same batch, weights and
reference through `fused_preference_loss`. Bounds are fp32 rounding.
"""

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from prefkit import DPO, fused_preference_loss

trl = pytest.importorskip("trl", reason="TRL is not installed")
ROWS = [
    {"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5, I think"},
    {"prompt": "The capital of France is", "chosen": " Paris, on the Seine", "rejected": " Rome"},
    {"prompt": "Count:", "chosen": " 1 2 3", "rejected": " 1 3 2"},
]


def byte_tokenizer() -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: k for k, token in enumerate(["<eos>", "<pad>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>")


def small_llama(seed: int, tie: bool) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=258,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        tie_word_embeddings=tie,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config)


def trl_step(
    loss_type: str, smoothing: float, tie: bool, folder: Path
) -> tuple[float, dict[str, Tensor], dict[str, Tensor], dict[str, float]]:
    """TRL's loss, its gradients, the batch it used, and its metrics."""
    args = trl.DPOConfig(
        output_dir=str(folder),
        loss_type=[loss_type],
        label_smoothing=smoothing,
        beta=0.3,
        per_device_train_batch_size=len(ROWS),
        use_cpu=True,
        bf16=False,
        report_to="none",
        gradient_checkpointing=False,
    )
    trainer = trl.DPOTrainer(
        model=small_llama(0, tie),
        ref_model=small_llama(1, tie),
        args=args,
        train_dataset=Dataset.from_list(ROWS),
        processing_class=byte_tokenizer(),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    kept = {name: x.clone() for name, x in batch.items() if isinstance(x, Tensor)}
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    grads = {name: p.grad.clone() for name, p in trainer.model.named_parameters()}
    metrics = {name: values[0] for name, values in trainer._metrics["train"].items()}
    return float(loss.detach()), grads, kept, metrics


@pytest.mark.parametrize("tie", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize(
    ("loss_type", "objective"),
    [
        ("sigmoid", DPO(beta=0.3)),
        ("ipo", DPO(beta=0.3, link="ipo")),
        ("robust", DPO(beta=0.3, link="robust", label_smoothing=0.2)),
        ("hinge", DPO(beta=0.3, link="hinge")),
        ("sigmoid_norm", DPO(beta=0.3, length_normalized=True)),
    ],
)
def test_same_loss_gradients_and_metrics_as_trl(
    loss_type: str, objective: DPO, tie: bool, tmp_path: Path
) -> None:
    smoothing = objective.label_smoothing
    expected, grads, batch, metrics = trl_step(loss_type, smoothing, tie, tmp_path)
    policy, reference = small_llama(0, tie), small_llama(1, tie).requires_grad_(False)
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
    assert out.loss.item() == pytest.approx(expected, rel=2e-6)
    found = dict(policy.named_parameters())
    assert found.keys() == grads.keys()
    scale = max(float(g.abs().max()) for g in grads.values())
    for name, grad in grads.items():
        assert (found[name].grad - grad).abs().max() <= 1e-5 * scale, name
    assert metrics.keys() - out.metrics.keys() == {"num_tokens"}  # the trainer's
    for name, value in out.metrics.items():
        assert float(value) == pytest.approx(metrics[name], rel=2e-5, abs=1e-6), name
