"""Every causal language model of transformers in prefkit: random miniatures against plain logits.

    python -m benchmarks.models                    the models that most people train
    python -m benchmarks.models --all              every type of transformers
    python -m benchmarks.models --types llama,qwen3_next

`miniatures` makes the models, `one` compares one of them, `pool` runs many, `page` writes
docs/models.md.
"""
