"""No buffer grows with tokens × vocabulary: peak memory of real processes (Linux)."""

import sys

import pytest

from benchmarks.memory_vs_tokens import VOCAB, allowed_bytes_a_token, measure


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
@pytest.mark.parametrize(
    ("objective", "frozen"), [("dpo", True), ("tdpo2", False)], ids=["one pass", "two passes"]
)
def test_a_token_costs_its_hidden_states_and_no_logits(objective: str, frozen: bool) -> None:
    few, many = (
        measure(tokens, objective, "float32", frozen, budget_mib=8) for tokens in (1024, 3072)
    )
    slope = (many.extra - few.extra) / (many.tokens - few.tokens)
    print(f"{slope:.0f} bytes a token, allowed {allowed_bytes_a_token('float32')}")
    assert slope <= 1.2 * allowed_bytes_a_token("float32")
    assert slope < VOCAB * 4 / 20
