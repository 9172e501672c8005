"""prefkit's keys in axolotl's YAML: what is read, and what is refused before anything is loaded."""

import pytest

pydantic = pytest.importorskip("pydantic")

from prefkit.integrations.axolotl.args import (  # noqa: E402
    KEYS,
    PrefkitArgs,
    settings_of,
)

TDPO = {"rl": "dpo", "prefkit_method": "tdpo2"}


def test_the_plugin_alone_is_enough() -> None:
    args = PrefkitArgs.model_validate({"rl": "dpo", "base_model": "a", "sequence_len": 64})
    assert settings_of(args.model_dump()) == {}


def test_what_is_given_are_settings_of_trl() -> None:
    pytest.importorskip("trl")
    from prefkit.integrations.trl.config import Settings

    given = {
        **TDPO,
        "prefkit_alpha": 0.25,
        "prefkit_append_eos": "never",
        "prefkit_layout": "padded",
        "prefkit_memory_budget": 2**20,
    }
    assert set(KEYS) <= set(given)
    read = settings_of(PrefkitArgs.model_validate(given).model_dump())
    assert Settings(**read) == Settings(
        method="tdpo2", alpha=0.25, append_eos="never", layout="padded", memory_budget=2**20
    )


def test_the_choices_are_those_of_trl() -> None:
    pytest.importorskip("trl")
    from prefkit.integrations.trl.config import ENDS, LAYOUTS, METHODS

    for key, choices in (("method", METHODS), ("append_eos", ENDS), ("layout", LAYOUTS)):
        declared = PrefkitArgs.model_json_schema()["properties"][f"prefkit_{key}"]["anyOf"]
        assert set(declared[0]["enum"]) == set(choices)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"rl": None}, "Set rl: dpo"),
        ({"rl": "orpo"}, "Set rl: dpo"),
        ({"prefkit_methd": "tdpo2"}, "Did you mean prefkit_method"),
        ({"prefkit": True}, "its line in plugins"),
        ({"prefkit_method": "tdpo"}, "prefkit_method"),
        ({"prefkit_memory_budget": 0}, "prefkit_memory_budget"),
        ({"prefkit_alpha": 0.5}, "tdpo2 alone"),
        ({"prefkit_method": "tdpo1", "prefkit_alpha": 0.5}, "tdpo2 alone"),
        ({**TDPO, "prefkit_alpha": -1}, "prefkit_alpha"),
        ({"dpo_use_liger_kernel": True}, "dpo_use_liger_kernel"),
        ({"context_parallel_size": 2}, "context_parallel_size"),
        ({"tensor_parallel_size": 2}, "tensor_parallel_size"),
        ({**TDPO, "rl": "ipo"}, "Set rl: dpo with it"),
        ({**TDPO, "dpo_loss_type": ["hinge"]}, "dpo_loss_type"),
        ({**TDPO, "dpo_use_weighting": True}, "dpo_use_weighting"),
        ({**TDPO, "dpo_label_smoothing": 0.1}, "dpo_label_smoothing"),
        ({**TDPO, "precompute_ref_log_probs": True}, "precompute_ref_log_probs"),
    ],
)
def test_what_cannot_work_is_refused_with_the_key_and_the_remedy(given: dict, words: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=words):
        PrefkitArgs.model_validate({"rl": "dpo", **given})


@pytest.mark.parametrize(
    "given",
    [
        {"rl": "ipo"},
        {"dpo_use_liger_kernel": False, "context_parallel_size": 1, "tensor_parallel_size": None},
        {"precompute_ref_log_probs": True, "dpo_loss_type": ["hinge"]},
        {**TDPO, "prefkit_alpha": 0, "dpo_loss_type": ["sigmoid"]},
    ],
)
def test_what_works_is_let_through(given: dict) -> None:
    PrefkitArgs.model_validate({"rl": "dpo", **given})
