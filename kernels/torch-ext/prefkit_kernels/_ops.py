"""The namespace of this package's operators.

The Hub's builder writes this file anew, with the name of its build as the namespace; the function
is the one that its static check looks for.
"""

from __future__ import annotations

import re

# The package's own name: a second copy, loaded from a kernel hub, does not collide with this one.
_NAMESPACE = re.sub(r"\W", "_", __package__ or "prefkit_kernels")


def add_op_namespace_prefix(op_name: str) -> str:
    """An operator's full name."""
    return f"{_NAMESPACE}::{op_name}"
