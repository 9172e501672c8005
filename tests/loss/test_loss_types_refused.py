"""Combinations of losses and options that mean nothing: each is refused by name."""

from typing import Any

import pytest

from prefkit import DPO, DPOP, ConfigError

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": ({"loss_type": "bco"}, r"loss_type is 'bco'; it must be one of bco_pair, "),
    "unknown of several": ({"loss_type": ["ipo", "hing"]}, "'hing'; it must be one of hinge, "),
    "none": ({"loss_type": []}, "names no loss"),
    "two ways": ({"loss_type": "ipo", "link": "hinge"}, "two names of one option"),
    "a link and several": ({"loss_type": ["ipo", "sft"], "link": "ipo"}, "Leave link out"),
    "weights": ({"loss_weights": [0.5, 0.5]}, "2 numbers for the 1 losses sigmoid"),
    "negative weight": ({"loss_weights": [-0.5]}, "loss_weights is -0.5; it must be 0 or more"),
    "exo without smoothing": ({"loss_type": "exo_pair"}, "needs label_smoothing above 0"),
    "smoothing": ({"loss_type": "bco_pair", "label_smoothing": 0.1}, "no effect with link 'bco"),
    "margin": ({"loss_type": "apo_down", "margin": 1.0}, "no function of a difference"),
    "margins of rows": ({"loss_type": "aot", "margin_weight": 1.0}, "no effect with link 'aot'"),
    "means of sums": ({"loss_type": "sppo_hard", "length_normalized": True}, "length_normalized"),
    "divergence": (
        {"loss_type": ["hinge", "nca_pair"], "f_divergence_type": "forward_kl"},
        "loss_type nca_pair takes each by itself",
    ),
    "divergence of nothing": (
        {"reference_free": True, "f_divergence_type": "forward_kl"},
        "reference_free excludes f_divergence_type",
    ),
    "no reference": ({"loss_type": "bco_pair", "reference_free": True}, "excludes loss_type bco"),
    "alpha alone": ({"f_alpha_divergence_coef": 0.3}, "no effect without alpha_divergence"),
    "tau alone": ({"discopop_tau": 0.3}, "no effect without discopop"),
    "tau": ({"loss_type": "discopop", "discopop_tau": 0.0}, "discopop_tau is 0.0; it must be"),
    "LD": ({"ld_alpha": 1.5}, r"ld_alpha is 1.5; it must be in \[0, 1\]"),
    "WPO of sorted": ({"loss_type": "aot", "use_weighting": True}, "use_weighting weighs the loss"),
    "WPO of a batch": ({"loss_type": ["ipo", "sft"], "pair_weights": "wpo"}, "loss_type sft is"),
    "WPO of groups": ({"link": "plackett_luce", "use_weighting": True}, "loss of groups"),
    "WPO and another": ({"use_weighting": True, "pair_weights": "os:sep"}, "Leave one out"),
    "groups and a batch": ({"loss_type": ["plackett_luce", "sft"]}, "one of a whole batch"),
    "positions": ({"loss_type": "bco_pair", "reduction": "position"}, "compares tokens"),
    "positions and LD": ({"ld_alpha": 0.5, "reduction": "position"}, "ld_alpha whole responses"),
    "positions and f": (
        {"f_divergence_type": "forward_kl", "reduction": "position"},
        "f_divergence_type whole responses",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_meaning_is_refused_by_name(case: str) -> None:
    options, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message):
        DPO(**options)


def test_the_penalty_of_dpop_needs_a_margin() -> None:
    with pytest.raises(ConfigError, match="which loss_type bco_pair does not have"):
        DPOP(loss_type="bco_pair")
    with pytest.raises(ConfigError, match="which f_divergence_type does not have"):
        DPOP(f_divergence_type="forward_kl")
