"""Every misuse of the kernels is one ValueError that names the argument."""

import pytest
import torch

from prefkit_kernels import contrastive_scores, token_stats

H, W, Y = torch.randn(4, 8), torch.randn(10, 8), torch.tensor([1, 2, 3, 4])

WRONG = {
    "batched hidden": (dict(hidden=H[None]), "flatten batches"),
    "another D": (dict(hidden=torch.randn(4, 7)), "same D"),
    "targets too short": (dict(targets=Y[:3]), r"targets must be \(T,\)"),
    "targets int32": (dict(targets=Y.int()), "int64"),
    "target beyond V": (dict(targets=torch.tensor([1, 2, 3, 10])), r"targets\[3\] = 10"),
    "negative target": (dict(targets=torch.tensor([1, -1, 3, 4])), r"targets\[1\] = -1"),
    "bias of another V": (dict(bias=torch.zeros(9)), "bias must be"),
    "mixed dtypes": (dict(weight=W.bfloat16()), "autocast"),
    "integer hidden": (dict(hidden=H.int(), weight=W.int()), "floating dtype"),
    "unknown output": (dict(outputs=("logits",)), "distinct names"),
    "no output": (dict(outputs=()), "distinct names"),
    "output twice": (dict(outputs=("logp", "logp")), "distinct names"),
    "kl without reference": (dict(outputs=("kl",)), "need ref_hidden"),
    "half a reference": (dict(outputs=("kl",), ref_hidden=H), "go together"),
    "reference of another T": (
        dict(outputs=("kl",), ref_hidden=H[:3], ref_weight=W),
        "to fit ref_hidden",
    ),
    "temperature 0": (dict(temperature=0.0), "temperature must be > 0"),
    "negative softcap": (dict(softcap=-30.0), "softcap must be > 0"),
    "no memory": (dict(memory_budget=0), "memory_budget is in bytes"),
    "unknown backend": (dict(backend="cuda"), "backend must be one of"),
}


@pytest.mark.parametrize("name", WRONG)
def test_misuse_is_named(name: str) -> None:
    change, message = WRONG[name]
    arguments = {"hidden": H, "weight": W, "targets": Y, **change}
    with pytest.raises(ValueError, match=message):
        token_stats(**arguments)


def test_contrastive_scores_are_checked_too() -> None:
    with pytest.raises(ValueError, match="neg_hidden"):
        contrastive_scores(H, W, H[:3], W, Y)
    with pytest.raises(ValueError, match="classes both models have"):
        contrastive_scores(H, W, H, W[:4], Y)
