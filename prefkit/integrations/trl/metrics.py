"""What TRL logs of a batch, under TRL's names, from the per-token quantities of the loss.

Sums over this process's tokens and pairs are made where the head's operands are; they are gathered
once, not one by one, and asked of a GPU once.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from prefkit.integrations.trl.batch import Scored
from prefkit.integrations.trl.versions import tp_size
from prefkit.loss.fused import PreferenceLoss

# Quantities of `token_stats` that only metrics read.
ALSO = ("entropy",)
_BY_TOKEN = ("entropy", "tokens", "right", "chosen", "rejected", "logits/chosen", "logits/rejected")


def sums_of(
    scored: Scored, out: PreferenceLoss, right: Tensor, mean_logit: Tensor
) -> dict[str, Tensor]:
    """() each: sums over the tokens, and over the pairs, of what is logged as means.

    Args:
        scored: the tokens.
        out: their loss.
        right: (N,) bool, whether the target is the likeliest token.
        mean_logit: (N,) mean of the logits over the vocabulary.
    """
    entropy = out.stats.entropy
    assert entropy is not None, "asked for"
    first = (scored.segments % 2 == 0).to(entropy.dtype)
    by_token = {
        "entropy": entropy.sum(),
        "tokens": torch.ones_like(first).sum(),
        "right": (first * right).sum(),
        "chosen": first.sum(),
        "rejected": (1 - first).sum(),
        "logits/chosen": (first * mean_logit).sum(),
        "logits/rejected": ((1 - first) * mean_logit).sum(),
    }
    present = scored.present()  # what the metrics are means over; TRL counts the others as 0
    return by_token | {name: mean * present for name, mean in out.metrics.items()}


def zeros_of(scored: Scored, names: Mapping[str, Any]) -> dict[str, Tensor]:
    """The same of a batch without a scored token; `names` are those of the metrics of pairs."""
    return {name: torch.zeros((), device=scored.rows.device) for name in (*_BY_TOKEN, *names)}


def log_metrics(trainer: Any, inputs: Mapping[str, Any], found: Mapping[str, Tensor]) -> None:
    """Gathers the sums of all processes and notes the means, until TRL logs them.

    Args:
        found: of `sums`, and `aux_loss`, the routers' auxiliary loss, where there is one.
    """
    mode = "train" if trainer.model.training else "eval"
    noted, accelerator = trainer._metrics[mode], trainer.accelerator
    device = found["tokens"].device
    read = inputs["attention_mask"].sum().to(device)
    aux = [found["aux_loss"].to(device)] if "aux_loss" in found else []
    of_pairs = [name for name in found if name not in (*_BY_TOKEN, "aux_loss")]
    pairs = torch.tensor(len(inputs["input_ids"]) // 2, device=device)
    # As TRL gathers: what is a mean over tokens leaves out what only fills an evaluation up.
    tokens = accelerator.gather_for_metrics(_row([*(found[n] for n in _BY_TOKEN), read, *aux]))
    by_pair = accelerator.gather(_row([pairs, *(found[name] for name in of_pairs)]))
    values = torch.cat([tokens.flatten(), by_pair.flatten()]).tolist()
    of_token = _columns(values[: tokens.numel()], tokens.shape[1])
    total = dict(zip((*_BY_TOKEN, "read"), of_token, strict=False))
    count, *of_pair = _columns(values[tokens.numel() :], by_pair.shape[1])

    if aux:
        noted["aux_loss"].append(of_token[-1] / len(tokens))
    noted["entropy"].append(_mean(total["entropy"], total["tokens"]))
    if mode == "train":
        trainer._total_train_tokens += int(total["read"]) // tp_size(trainer)
    noted["num_tokens"] = [trainer._total_train_tokens]
    for side in ("chosen", "rejected"):
        noted[f"logits/{side}"].append(_mean(total[f"logits/{side}"], total[side]))
    noted["mean_token_accuracy"].append(_mean(total["right"], total["chosen"]))
    for name, value in zip(of_pairs, of_pair, strict=True):
        noted[name].append(value / count)


def _row(values: list[Tensor]) -> Tensor:
    """(1, K) fp32: exact for whole numbers up to 2²⁴, more than a batch has tokens."""
    return torch.stack([value.detach().float() for value in values])[None]


def _columns(values: list[float], width: int) -> list[float]:
    """The sums of the columns of a flat table."""
    return [sum(values[column::width]) for column in range(width)]


def _mean(total: float, count: float) -> float:
    return total / count if count else 0.0
