"""What each process of tests/loss/test_sequence_parallel.py runs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from prefkit import DPO, TDPO, SimPO, fused_preference_loss
from prefkit.loss.fused import PreferenceLoss
from prefkit.loss.objective import Objective
from prefkit.loss.objectives import DPOP
from prefkit.train.checkpointing.leaving import leave_group
from prefkit_kernels import VocabShard
from tests.gloo import join
from tests.kernels.kernel_cases import relative_error
from tests.loss.test_objectives import SEGMENTS, sample

PAIRS = 2
OBJECTIVES: dict[str, Objective] = {
    "sigmoid": DPO(beta=0.3),
    "label smoothing": DPO(beta=0.3, label_smoothing=0.1),
    "robust": DPO(beta=0.3, link="robust", label_smoothing=0.1),
    "hinge": DPO(beta=0.3, link="hinge"),
    "ipo": DPO(beta=0.3, link="ipo"),
    "length-normalised": DPO(beta=3.0, length_normalized=True),
    "simpo": SimPO(),
    "nll": DPO(beta=0.3, nll_weight=0.7),
    "dpop": DPOP(beta=0.3, penalty=0.7),
    "margins": DPO(beta=0.3, margin_weight=2.0),
    "plackett-luce": DPO(beta=0.3, link="plackett_luce"),
    "of both rewards": DPO(beta=0.3, loss_type="bco_pair"),
    "of the batch": DPO(beta=0.3, loss_type=["aot", "sft"]),
    "divergence": DPO(beta=0.3, link="ipo", f_divergence_type="js_divergence"),
    "tdpo1": TDPO(beta=0.3, variant="tdpo1"),
    "tdpo2": TDPO(beta=0.3),
}
TOKENS = range(len(SEGMENTS))
# The rows of each rank. Pair 0 has its chosen side on both ranks of the first split.
SPLITS: dict[str, list[list[int]]] = {
    "uneven": [list(TOKENS[:4]), list(TOKENS[4:])],
    "a side each": [[t for t in TOKENS if SEGMENTS[t] % 2 == side] for side in (0, 1)],
    "a pair each": [list(TOKENS[:10]), list(TOKENS[10:])],
    "nothing scored": [list(TOKENS[2:]), list(TOKENS[:2])],
    "no token": [[], list(TOKENS)],
}
PER_TOKEN = ("hidden", "targets", "segments", "weights", "ref_hidden", "ref_logp")


def shard_of(x: dict[str, Tensor], rows: list[int]) -> dict[str, Tensor]:
    """These rows of everything that is of tokens, and heads, as leaves of their own."""
    part = {key: value[rows] if key in PER_TOKEN else value for key, value in x.items()}
    return {
        key: value.detach().clone().requires_grad_(x[key].requires_grad)
        for key, value in part.items()
    }


def problem(dtype: torch.dtype, frozen: bool, pairs: int) -> dict[str, Tensor]:
    x = sample(True)
    if pairs == 1:
        x["segments"] = torch.where(x["segments"] < 2, x["segments"], -1)
    x = {key: v.to(dtype) if v.is_floating_point() else v for key, v in x.items()}
    for name in ("hidden", "weight"):
        x[name] = x[name].detach().requires_grad_(name == "hidden" or not frozen)
    return x


def errors_of(
    x: dict[str, Tensor], objective: Objective, rows: list[int], pairs: int, **options: Any
) -> dict[str, float]:
    """This rank's differences to one process with all tokens."""
    x, part = shard_of(x, list(TOKENS)), shard_of(x, rows)
    if objective.needs_margins:
        options["margins"] = torch.tensor([0.4, -1.5], dtype=x["hidden"].dtype)[:pairs]
    if objective.needs_groups:
        options["groups"] = torch.zeros(pairs, dtype=torch.int64)
    want = fused_preference_loss(objective=objective, pairs_in_call=pairs, **x, **options)
    got = fused_preference_loss(
        objective=objective,
        pairs_in_call=pairs,
        sequence_group=dist.group.WORLD,
        **part,
        **options,
    )
    want.loss.backward()
    got.loss.backward()
    return {**_values(got, want), **_gradients(part, x, rows)}


def _values(got: PreferenceLoss, want: PreferenceLoss) -> dict[str, float]:
    assert got.metrics.keys() == want.metrics.keys()
    ours, theirs = (torch.stack([x.loss.detach(), *x.metrics.values()]) for x in (got, want))
    everywhere = [torch.empty_like(ours) for _ in range(dist.get_world_size())]
    dist.all_gather(everywhere, ours)
    return {
        "loss and metrics": float((ours - theirs).abs().max()),
        "between ranks": float((everywhere[0] - everywhere[1]).abs().max()),
    }


def _gradients(part: dict[str, Tensor], x: dict[str, Tensor], rows: list[int]) -> dict[str, float]:
    errors = {}
    if rows:
        assert part["hidden"].grad is not None
        assert x["hidden"].grad is not None
        largest = x["hidden"].grad.abs().max()
        errors["d_hidden"] = float(
            (part["hidden"].grad - x["hidden"].grad[rows]).abs().max() / largest
        )
    if x["weight"].requires_grad:
        total = part["weight"].grad
        assert total is not None
        dist.all_reduce(total)
        errors["d_weight"] = float(relative_error(total, x["weight"].grad))
    return errors


def all_errors(rank: int) -> dict[str, dict[str, float]]:
    found = {}
    for name, objective in OBJECTIVES.items():
        for split, rows in SPLITS.items():
            for passes, frozen, pairs in (
                ("one_pass", True, 2),
                ("one_pass", False, 1),
                ("two_pass", True, 2),
                ("two_pass", False, 2),
            ):
                if passes == "one_pass" and objective.not_linear and not frozen:
                    continue  # each token is a score of its own
                for dtype in (torch.float64, torch.float32):
                    x = problem(dtype, frozen, pairs)
                    case = f"{dtype} {name}, {split}, {passes} {frozen} {pairs}"
                    found[case] = errors_of(x, objective, rows[rank], pairs, passes=passes)
    return found


def options_errors(rank: int) -> dict[str, dict[str, float]]:
    """Cached reference log-probs, a divisor, a pair that nobody holds, no gradient at all."""
    rows, found = SPLITS["uneven"][rank], {}
    x = problem(torch.float64, False, 2)
    x["ref_logp"] = x["weights"] - 3.0  # any numbers
    del x["ref_hidden"], x["ref_weight"]
    found["cached"] = errors_of(x, DPO(), rows, 2)
    found["cached, num_pairs"] = errors_of(x, DPO(), rows, 2, num_pairs=7)
    found["a gap"] = errors_of(problem(torch.float64, True, 2), TDPO(), rows, 5)
    found["counted"] = errors_of(
        problem(torch.float64, True, 2), TDPO(), rows, 2, backend="reference"
    )
    with torch.no_grad():
        x = problem(torch.float64, False, 2)
        options: dict[str, Any] = {"objective": TDPO(), "pairs_in_call": 2}
        want = fused_preference_loss(**x, **options)
        options["sequence_group"] = dist.group.WORLD
        found["evaluation"] = _values(fused_preference_loss(**shard_of(x, rows), **options), want)
    return found


class Model(nn.Module):
    """A body of one layer and a head, whose forward is the loss, as under DDP and FSDP."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.body = nn.Linear(6, 6, dtype=torch.float64)
        self.head = nn.Linear(6, 23, bias=False, dtype=torch.float64)

    def forward(self, x: dict[str, Tensor], group: dist.ProcessGroup | None) -> Tensor:
        inputs = {**x, "hidden": self.body(x["hidden"]), "weight": self.head.weight}
        out = fused_preference_loss(
            objective=TDPO(beta=0.3), pairs_in_call=PAIRS, sequence_group=group, **inputs
        )
        return out.loss * (group.size() if group else 1)


def data_parallel_error(rank: int) -> float:
    """DDP's mean of gradients, of the loss times the group's size."""
    x = {key: value.detach() for key, value in problem(torch.float64, False, PAIRS).items()}
    plain, wrapped = Model(), DistributedDataParallel(Model())
    plain(x, None).backward()
    wrapped(shard_of(x, SPLITS["uneven"][rank]), dist.group.WORLD).backward()
    return max(
        float(relative_error(ours.grad, want.grad))
        for ours, want in zip(wrapped.parameters(), plain.parameters(), strict=True)
    )


def refusals(rank: int) -> dict[str, str]:
    """Mistakes of one rank or of all: each is refused on both, and the next call works."""
    first = rank == 0
    mistakes: dict[str, Callable[[dict[str, Any]], Any]] = {
        "no pairs_in_call": lambda x: x.update(pairs_in_call=None),
        "position": lambda x: x.update(objective=DPO(reduction="position")),
        "lengths": lambda x: x.update(objective=DPO(ld_alpha=0.5)),
        "hooks": lambda x: x.update(objective=TDPO(pair_weights="wpo")),
        "other pairs": lambda x: x.update(pairs_in_call=PAIRS + rank),
        "target": lambda x: x["targets"].fill_(99) if first else None,
        "negative weight": lambda x: x["weights"].fill_(-1.0) if first else None,
        "segment": lambda x: x["segments"].fill_(4) if first else None,
        "shape": lambda x: x.update(weights=x["weights"][1:]) if first else None,
        "margins": lambda x: x.update(
            objective=DPO(margin_weight=1.0), margins=torch.zeros(PAIRS + (not first))
        ),
        "nothing scored": lambda x: x["segments"].fill_(-1),
        "passes": lambda x: x.update(passes="one_pass"),  # two pairs and a trainable head
    }
    messages = {}
    for name, spoil in mistakes.items():
        x: dict[str, Any] = shard_of(problem(torch.float64, False, 2), SPLITS["uneven"][rank])
        x |= {"objective": TDPO(), "pairs_in_call": PAIRS}
        spoil(x)
        try:
            fused_preference_loss(sequence_group=dist.group.WORLD, **x)
        except ValueError as error:
            messages[name] = str(error)
    return messages


def with_vocabulary_error(mesh: DeviceMesh, passes: str) -> dict[str, float]:
    """Tokens over one dimension of a mesh, the vocabulary over the other."""
    rows = SPLITS["uneven"][mesh.get_local_rank("sequence")]
    pairs = 1 if passes == "one_pass" else 2
    x = problem(torch.float64, False, pairs)
    shard = VocabShard(mesh.get_group("vocabulary"), vocab_size=len(x["weight"]))
    part = shard_of(x, rows)
    here = slice(shard.start, shard.stop)
    for name in ("weight", "ref_weight"):
        part[name] = part[name].detach()[here].clone().requires_grad_(name == "weight")
    options: dict[str, Any] = {"objective": TDPO(beta=0.3), "passes": passes}
    options["pairs_in_call"] = pairs
    want = fused_preference_loss(**x, **options)
    group = mesh.get_group("sequence")
    got = fused_preference_loss(**part, **options, sequence_group=group, vocab_shard=shard)
    want.loss.backward()
    got.loss.backward()
    total = part["weight"].grad
    dist.all_reduce(total, group=group)
    errors = {
        "loss": got.loss - want.loss,
        "d_hidden": part["hidden"].grad - x["hidden"].grad[rows],
        "d_weight": total - x["weight"].grad[here],
    }
    return {name: float(error.detach().abs().max()) for name, error in errors.items()}


def work_on_a_mesh(rank: int, world: int, folder: str) -> None:
    start(rank, world, folder)
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("sequence", "vocabulary"))
    errors = {how: with_vocabulary_error(mesh, how) for how in ("one_pass", "two_pass")}
    Path(folder, f"{rank}.json").write_text(json.dumps(errors))
    leave_group()


def start(rank: int, world: int, folder: str) -> None:
    join(rank, world, folder)


def work(rank: int, world: int, folder: str) -> None:
    start(rank, world, folder)
    report = {
        "errors": all_errors(rank),
        "messages": refusals(rank),
        "options": options_errors(rank),  # after the refusals: nothing may be out of step
        "data parallel": data_parallel_error(rank),
    }
    Path(folder, f"{rank}.json").write_text(json.dumps(report))
    leave_group()
