"""The load-balancing loss of a mixture of experts: found, proved by numbers, and computed here.

A model of transformers that can return its routers' outputs makes a loss of them that is least
where every expert gets the same share (Switch Transformer, arXiv 2101.03961, eqs. 4-6, summed over
the experts that a token chooses):

    L = E · Σ_e f_e · P_e,    f_e = (1/N) Σ_n [e among the k chosen by n],   P_e = (1/N) Σ_n p_n(e)

n runs over the tokens that count, in all layers together. transformers adds it to a model's own
loss only; here it is made again from the routers' outputs, so that filling tokens stay out of it
and processes that share a row have that row's loss.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from prefkit.errors import ModelError
from prefkit.model.fsdp_units import only_first_loads
from prefkit.model.head.fused import unwrap
from prefkit.model.small_copy import small_copy

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


@dataclass(frozen=True)
class Router:
    """How a model's routers choose, and what their balance weighs.

    Attributes:
        top_k: experts that a token chooses.
        coefficient: factor of the load-balancing loss in the training loss.
    """

    top_k: int
    coefficient: float


def load_balancing_loss(
    gates: Sequence[Tensor] | None,
    top_k: int,
    counts: Tensor | None = None,  # (N,) bool
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """The loss above, a scalar of at least fp32, differentiable by the gates.

    Args:
        gates: (N, E) a layer: the routers' outputs before the softmax, any float dtype.
        top_k: experts that a token chooses.
        counts: (N,) whether a token counts; None = all do.
        group: processes that hold pieces of the same tokens. Value and counts are of all pieces;
            each process gets the gradient of its own, so that their sum is the whole one.

    Raises:
        ModelError: no gates, or not 1 to E chosen by a token.
    """
    if not gates or not 0 < top_k <= gates[0].shape[-1]:
        had = f"{gates[0].shape[-1]} experts" if gates else "no outputs of routers"
        raise ModelError(
            f"The load-balancing loss was asked for with {top_k} experts a token, and the model "
            f"gives {had}. Set router_aux_loss_coef to 0."
        )
    experts, device = gates[0].shape[-1], gates[0].device
    precision = torch.promote_types(gates[0].dtype, torch.float32)
    chosen = torch.zeros(experts, dtype=precision, device=device)
    given, rows = torch.zeros_like(chosen), torch.zeros((), dtype=precision, device=device)
    for gate in gates:
        # In the router's own dtype, as transformers does: rounding may decide who is chosen.
        probability = gate.to(device).reshape(-1, experts).softmax(-1)
        top = probability.topk(top_k, dim=-1).indices
        one = torch.ones(len(probability), dtype=precision, device=device)
        one = one if counts is None else counts.to(one)
        chosen = chosen.scatter_add(0, top.flatten(), one.repeat_interleave(top_k))
        given = given + (probability.to(precision) * one[:, None]).sum(0)
        rows = rows + one.sum()
    if group is not None:
        whole = torch.cat([chosen, given.detach(), rows[None]])
        dist.all_reduce(whole, group=group)
        chosen, total, rows = whole[:experts], whole[experts:-1], whole[-1]
        given = given + (total - given.detach())
    return experts * (chosen / rows * given / rows).sum()


def experts_of(config: Any) -> int:
    """Experts a layer that a model's config speaks of; 0 for a dense model."""
    found = (getattr(config, name, None) for name in _EXPERTS)
    return next((count for count in found if isinstance(count, int) and count > 1), 0)


def find_router(model: nn.Module, coefficient: float | None) -> tuple[Router | None, str]:
    """The routers whose balance is part of the loss, or None and why there are none, in words.

    Args:
        model: a causal LM, possibly inside a PEFT wrapper.
        coefficient: the user's; None = what the model's config declares (0 where it does not), as
            in TRL.

    Raises:
        ModelError: a coefficient above 0 for a model that has no such loss, or makes another one.
    """
    owner: Any = unwrap(model)
    config = owner.config.get_text_config()
    declared = hasattr(config, "output_router_logits")
    value = coefficient
    if value is None:
        value = float(getattr(config, "router_aux_loss_coef", None) or 0.0) if declared else 0.0
    if not value:
        return None, "router_aux_loss_coef is 0" if coefficient == 0 else "its config declares none"
    reason = _why_not(owner, config) if declared else "its config has no output_router_logits"
    if reason is None:
        return Router(_top_k(owner, config), value), ""
    if coefficient is None:
        return None, reason
    raise ModelError(
        f"router_aux_loss_coef is {coefficient:g}, but there is no load-balancing loss to weigh for"
        f" {type(owner).__name__}: {reason}. Leave router_aux_loss_coef out."
    )


def _top_k(owner: Any, config: Any) -> int:
    found = getattr(owner, "num_experts_per_tok", None)
    return int(getattr(config, "num_experts_per_tok", 0) if found is None else found)


def _why_not(owner: Any, config: Any) -> str | None:
    """Why the loss above is not the model's own, or None: both are computed on a few tokens.

    Where some process has no weights to compute with, all do so with the same small copy.
    """
    parameter = next(owner.parameters())
    if parameter.is_meta or hasattr(parameter, "ds_id") or only_first_loads():
        try:
            owner = small_copy(owner)
        except Exception as error:  # of any class's own kind
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            return f"its weights are not here, and no small copy of it can be tried ({first})"
        config, parameter = owner.config.get_text_config(), next(owner.parameters())
    ids = torch.arange(8, device=parameter.device).reshape(2, 4) % config.vocab_size
    mask = torch.ones_like(ids)
    mask[1, 3] = 0  # what is masked must not count
    was_training = owner.training
    owner.eval()
    try:
        with torch.no_grad():
            output = owner(
                input_ids=ids, attention_mask=mask, use_cache=False, output_router_logits=True
            )
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        return f"asked for its routers' outputs, its forward fails ({first})"
    finally:
        owner.train(was_training)
    gates, own = getattr(output, "router_logits", None), getattr(output, "aux_loss", None)
    if not gates or not isinstance(own, Tensor):
        return "its forward returns none"
    top_k = _top_k(owner, config)
    if not 0 < top_k <= gates[0].shape[-1] or any(g.numel() != 8 * g.shape[-1] for g in gates):
        return "its routers' outputs are not one number for each token and expert"
    mine = load_balancing_loss(gates, top_k, mask.flatten() == 1)
    if not torch.allclose(mine.float(), own.float(), rtol=1e-3, atol=1e-5):
        return "it makes another one of its routers' outputs than E·Σ f·P"
    return None
