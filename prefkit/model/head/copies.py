"""A head that PEFT trains in full (`modules_to_save`): one of several plain layers is the head.

PEFT puts a wrapper in the head's place that calls the layer in use: the copy that trains, the copy
of another adapter, or with the adapter off the layer as it was. Attributes of the wrapper, such as
`weight`, are those of the layer in use.
"""

from torch import nn


def layers_of(head: nn.Module) -> list[nn.Module]:
    """The layers that may act as a model's head.

    Args:
        head: its output embeddings.

    Returns:
        What PEFT keeps, the original layer first; the head alone where it is not PEFT's wrapper.
    """
    copies = getattr(head, "modules_to_save", None)
    original = getattr(head, "original_module", None)
    if isinstance(copies, nn.ModuleDict) and isinstance(original, nn.Module):
        return [original, *copies.values()]
    return [head]
