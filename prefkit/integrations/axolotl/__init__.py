"""axolotl's DPO training with prefkit's head (docs/axolotl.md).

plugins: [prefkit.integrations.axolotl.PrefkitPlugin]
"""

from typing import Any

__all__ = ["PrefkitPlugin"]


def __getattr__(name: str) -> Any:
    """The plugin, when axolotl asks for it: the schema beside it can be read without axolotl."""
    if name == "PrefkitPlugin":
        from prefkit.integrations.axolotl.plugin import PrefkitPlugin

        return PrefkitPlugin
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
