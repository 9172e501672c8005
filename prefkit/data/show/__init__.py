"""What `prefkit inspect` shows of pairs: their tokens, with side and weight, before any training.

The same code that prepares the training data prepares what is shown, so what is seen is what will
be scored. Only the tokenizer is loaded, never the model's weights. `pairs` prints a pair, `trees`
a question of several as a tree, `summary` what was read.
"""

from prefkit.data.show.command import View, load_tokenizer, show_pairs

__all__ = ["View", "load_tokenizer", "show_pairs"]
