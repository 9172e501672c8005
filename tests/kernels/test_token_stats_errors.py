"""Every misuse of the kernels is one ValueError that names the argument."""

import pytest
import torch

from prefkit_kernels import contrastive_scores, token_stats

H, W, Y = torch.randn(4, 8), torch.randn(10, 8), torch.tensor([1, 2, 3, 4])

WRONG = {
    "batched hidden": ({"hidden": H[None]}, "flatten batches"),
    "another D": ({"hidden": torch.randn(4, 7)}, "same D"),
    "targets too short": ({"targets": Y[:3]}, r"targets must be \(T,\)"),
    "targets int32": ({"targets": Y.int()}, "int64"),
    "target beyond V": ({"targets": torch.tensor([1, 2, 3, 10])}, r"targets\[3\] = 10"),
    "negative target": ({"targets": torch.tensor([1, -1, 3, 4])}, r"targets\[1\] = -1"),
    "bias of another V": ({"bias": torch.zeros(9)}, "bias must be"),
    "mixed dtypes": ({"weight": W.bfloat16()}, "autocast"),
    "integer hidden": ({"hidden": H.int(), "weight": W.int()}, "floating dtype"),
    "unknown output": ({"outputs": ("logits",)}, "distinct names"),
    "no output": ({"outputs": ()}, "distinct names"),
    "output not in a tuple": ({"outputs": "logp"}, r"give a tuple of names, \('logp',\)"),
    "output twice": ({"outputs": ("logp", "logp")}, "distinct names"),
    "kl without reference": ({"outputs": ("kl",)}, "need ref_hidden"),
    "half a reference": ({"outputs": ("kl",), "ref_hidden": H}, "go together"),
    "reference of another T": (
        {"outputs": ("kl",), "ref_hidden": H[:3], "ref_weight": W},
        "to fit ref_hidden",
    ),
    "temperature 0": ({"temperature": 0.0}, "temperature must be > 0"),
    "negative softcap": ({"softcap": -30.0}, "softcap must be > 0"),
    "no memory": ({"memory_budget": 0}, "memory_budget must be a whole number"),
    "unknown backend": ({"backend": "cuda"}, "backend must be one of"),
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
    with pytest.raises(ValueError, match=r"targets\[3\] = 4 is outside 0..3"):
        contrastive_scores(H, W, H, W[:4], Y)
