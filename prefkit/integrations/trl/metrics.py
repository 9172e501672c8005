"""What TRL logs of a batch, under TRL's names, from the metrics of the loss.

Means become sums where the head's operands are; those of all processes are gathered once, not one
by one, and asked of a GPU once.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from prefkit.integrations.trl.batch import Scored
from prefkit.integrations.trl.versions import tp_size
from prefkit.loss.fused import PreferenceLoss
from prefkit.loss.token_metrics import token_metric_names, tokens_of_metrics

_OF_TOKENS = tuple(token_metric_names(log_entropy=True))  # means over tokens; others over pairs
_COUNTS = ("chosen tokens", "rejected tokens")
_BESIDE = (*_COUNTS, *_OF_TOKENS, "aux_loss")


def sums_of(scored: Scored, out: PreferenceLoss, ld_alpha: float | None) -> dict[str, Tensor]:
    """() each: sums over the tokens, and over the pairs, of what is logged as means.

    Args:
        scored: the tokens.
        out: their loss, with the entropy among its metrics.
        ld_alpha: TRL's, which the logged log-probabilities have in them.
    """
    present = scored.present()  # what metrics of pairs are means over; TRL counts others as 0
    tokens = tokens_of_metrics(out.tokens)
    found = {name: mean * tokens.get(name, present) for name, mean in out.metrics.items()}
    if (tails := scored.tails(ld_alpha)) is not None:
        assert out.stats.logp is not None
        found["logps/chosen"], found["logps/rejected"] = (
            scored.summed(out.stats.logp * tails).view(2, -1).sum(1).unbind()
        )
    return found | dict(zip(_COUNTS, out.tokens, strict=True))


def zeros_of(scored: Scored, names: Iterable[str]) -> dict[str, Tensor]:
    """The same of a batch without a scored token; `names` are those of the metrics of pairs."""
    zero = torch.zeros((), device=scored.segments.device)
    return dict.fromkeys((*names, *_OF_TOKENS, *_COUNTS), zero)


def log_metrics(trainer: Any, inputs: Mapping[str, Any], found: Mapping[str, Tensor]) -> None:
    """Gathers the sums of all processes and notes the means, until TRL logs them.

    Args:
        found: of `sums_of`, and `aux_loss`, the routers' auxiliary loss, where there is one.
    """
    mode = "train" if trainer.model.training else "eval"
    noted, accelerator = trainer._metrics[mode], trainer.accelerator
    device = found[_COUNTS[0]].device
    by_token = {name: found[name] for name in _BESIDE if name in found}
    by_token["read"] = inputs["attention_mask"].sum().to(device)
    by_pair = {name: value for name, value in found.items() if name not in _BESIDE}
    by_pair["pairs"] = torch.tensor(len(inputs["input_ids"]) // 2, device=device)
    # As TRL gathers: means over tokens leave out a process that only fills an evaluation up.
    tokens = accelerator.gather_for_metrics(_row(by_token))
    pairs = accelerator.gather(_row(by_pair))
    values = torch.cat([tokens.flatten(), pairs.flatten()]).tolist()
    total = _columns(by_token, values[: tokens.numel()]) | _columns(
        by_pair, values[tokens.numel() :]
    )
    if "aux_loss" in total:
        noted["aux_loss"].append(total["aux_loss"] / len(tokens))
    if mode == "train":
        trainer._total_train_tokens += int(total["read"]) // tp_size(trainer)
    noted["num_tokens"] = [trainer._total_train_tokens]
    chosen, rejected = (total[name] for name in _COUNTS)
    for name in _OF_TOKENS:
        count = {"entropy": chosen + rejected, "logits/rejected": rejected}.get(name, chosen)
        noted[name].append(total[name] / count if count else 0.0)
    for name in by_pair:
        if name != "pairs":
            noted[name].append(total[name] / total["pairs"])


def _row(values: Mapping[str, Tensor]) -> Tensor:
    """(1, K) fp32: exact for whole numbers up to 2²⁴, more than a batch has tokens."""
    return torch.stack([value.detach().float() for value in values.values()])[None]


def _columns(names: Iterable[str], values: list[float]) -> dict[str, float]:
    """The sums of the columns of a flat table, by their names."""
    names = list(names)
    return {name: sum(values[k :: len(names)]) for k, name in enumerate(names)}
