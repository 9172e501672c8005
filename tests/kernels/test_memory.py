"""No buffer grows with tokens × vocabulary: peak memory of real processes (Linux)."""

import sys

import pytest

from benchmarks.memory_vs_tokens import VOCAB, allowed_bytes_a_token, measure


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
@pytest.mark.parametrize(
    ("objective", "dtype", "frozen", "passes"),
    [
        ("dpo", "float32", True, "auto"),
        ("tdpo2", "float32", False, "auto"),
        ("tdpo2", "float32", False, "two_pass"),
        ("dpo", "bfloat16", False, "two_pass"),
    ],
    ids=["frozen, one pass", "trainable, one pass", "two passes", "two passes, bf16"],
)
def test_a_token_costs_its_hidden_states_and_no_logits(
    objective: str, dtype: str, frozen: bool, passes: str
) -> None:
    few, many = (
        measure(tokens, objective, dtype, frozen, budget_mib=64, passes=passes)
        for tokens in (384, 1152)  # several chunks of at most 128 rows
    )
    slope = (many.extra - few.extra) / (many.tokens - few.tokens)
    allowed = allowed_bytes_a_token(dtype)
    print(f"{slope:.0f} bytes a token, allowed {allowed}")
    assert slope <= 1.2 * allowed
    assert slope < VOCAB * 4 / 20
