"""Rows as the papers publish them, and tokenizers of three kinds, for the data tests."""

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import prefkit

PLAIN_CHAT = (
    "{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)

# Math-Step-DPO-10K: eight string fields; the front ends in the middle of a line, after "Step 4:".
STEP_ROW: dict[str, Any] = {
    "dataset": "math_test",
    "prompt": "Determine the least positive integer x for which the sum of x and 4609 gives a "
    "remainder of 2104 when divided by 12.",
    "initial_reason_steps": "Let's think step by step.\nStep 1: We need x+4609≡2104 (mod 12)."
    "\nStep 2: Subtract 4609 from both sides.\nStep 3: Calculating 2104−4609=−2505.\nStep 4:",
    "chosen": " Divide −2505 by 12 and keep the remainder. So, −2505≡3 (mod 12).",
    "rejected": " Add a multiple of 12 to make it positive: −2505+12·210=30.",
    "full_chosen": " Divide −2505 by 12 and keep the remainder. So, −2505≡3 (mod 12).\nStep 5: "
    "The least positive x is \\boxed{3}.",
    "full_rejected": " Add a multiple of 12 to make it positive: −2505+12·210=30.\nStep 5: "
    "The least positive x is \\boxed{30}.",
    "answer": "3",
}


def scdpo_row() -> dict[str, Any]:
    """A step-controlled row: both sides share a front, then run to the end of the solution."""
    front = [
        {"role": "system", "content": [{"type": "text", "content": ""}]},
        {"role": "user", "content": [{"type": "text", "content": "What is 12 times 12?"}]},
        {
            "role": "assistant_correct",
            "content": [{"type": "text", "content": "Let me compute it with code."}],
        },
    ]
    chosen = [
        {"type": "code", "content": "print(12 * 12)"},
        {"type": "execution", "content": "144"},
        {"type": "text", "content": "The answer is 144."},
    ]
    rejected = [
        {"type": "code", "content": "print(12 + 12)"},
        {"type": "execution", "content": "24"},
        {"type": "text", "content": "The answer is 24."},
    ]
    return {
        "chosen": [*front, {"role": "assistant", "content": chosen}],
        "rejected": [*front, {"role": "assistant", "content": rejected}],
    }


TDPO_FILE: dict[str, Any] = {
    "\n\nHuman: How many legs have two cats?\n\nAssistant:": {
        "responses": [" Two cats have 8 legs.", " Two cats have 6 legs.", " Many."],
        "pairs": [[0, 1], [0, 2]],
        "sft_target": " Two cats have 8 legs.",
    }
}

STANDARD_ROW = {"prompt": "2 + 2 is", "chosen": " 4.", "rejected": " 5."}
IMPLICIT_ROW = {"chosen": "The sky is blue.", "rejected": "The sky is green."}
CONVERSATION_ROW = {
    "prompt": [{"role": "user", "content": "What color is the sky?"}],
    "chosen": [{"role": "assistant", "content": "It is blue."}],
    "rejected": [{"role": "assistant", "content": "It is green."}],
}
IMPLICIT_CONVERSATION_ROW = {
    side: [*CONVERSATION_ROW["prompt"], *CONVERSATION_ROW[side]] for side in ("chosen", "rejected")
}


def cdpo_scored_file(tokenizer: Any) -> dict[str, Any]:
    """A scored file with made-up scores: one for each token but the first of prompt + response.

    As in the release, the response starts after the first token up to which the decoded text holds
    the whole prompt. The prompt ends with a space: for many tokenizers that token is " So", which
    then counts as prompt in `response_start_idx` and `text`.
    """
    prompt, chosen, rejected = "Question: 3 + 4?\nAnswer: ", "So 3 + 4 = 7", "So 3 + 4 = 8, owed"
    results = {}
    for side, response in (("pos", chosen), ("neg", rejected)):
        ids = tokenizer(prompt + response)["input_ids"]
        start = next(
            (i for i in range(len(ids)) if prompt in tokenizer.decode(ids[: i + 1])),
            len(prompt) - 1,  # a character a token, some of them unknown
        )
        results[side] = {
            "ce_prob": [round(0.01 * (i + 1), 2) for i in range(len(ids) - 1)],
            "response_start_idx": start,
            "text": tokenizer.decode(ids[start + 1 :]),
        }
    return {
        "prompt": [prompt],
        "chosen": [chosen],
        "rejected": [rejected],
        "prob_result": [results],
    }


# ------------------------------------------------------------------------------------ tokenizers


def character_tokenizer(unknown: bool = True) -> PreTrainedTokenizerFast:
    """One token a character, as the tiny shipped model has."""
    known = [chr(c) for c in range(32, 127)] + ["\n", "−", "≡", "·"]
    special = ["<pad>", "<eos>"] + (["<unk>"] if unknown else [])
    vocabulary = {token: i for i, token in enumerate(special + known)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[], unk_token="<unk>" if unknown else None))
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>" if unknown else None,
    )
    fast.chat_template = PLAIN_CHAT
    return fast


def trimming_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with a BOS token whose offsets leave white space out (as RoBERTa's do)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*map(str, STEP_ROW.values()), "\n\n  \n" * 9], trainer)
    bos = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 0)]
    )
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), bos])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


TINY = Path(prefkit.__file__).parent / "demo" / "assets" / "model"
TOKENIZERS = ("characters", "trimming", "smollm2")
_made: dict[str, Any] = {}


def named_tokenizer(name: str, request: pytest.FixtureRequest) -> Any:
    """A tokenizer by name, made once; the fixture `smollm2` finds the real one or skips."""
    if name not in _made:
        if name == "smollm2":
            _made[name] = AutoTokenizer.from_pretrained(request.getfixturevalue("smollm2"))
        elif name == "tiny":
            if not TINY.is_dir():
                pytest.skip(f"needs the shipped model in {TINY}")
            _made[name] = AutoTokenizer.from_pretrained(TINY)
        else:
            _made[name] = {"characters": character_tokenizer, "trimming": trimming_tokenizer}[
                name
            ]()
    return _made[name]
