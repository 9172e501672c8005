"""TRL's DPO trainer with prefkit's head (docs/from_trl.md).

    from prefkit.integrations.trl import DPOTrainer  # instead of: from trl import DPOTrainer

or, for code that one does not own, `prefkit.integrations.trl.patch()` before it makes a trainer.
"""

from prefkit.integrations.trl.versions import check_version

check_version()

from prefkit.integrations.trl.config import DPOConfig  # noqa: E402
from prefkit.integrations.trl.patching import patch, unpatch  # noqa: E402
from prefkit.integrations.trl.trainer import DPOTrainer  # noqa: E402

__all__ = ["DPOConfig", "DPOTrainer", "patch", "unpatch"]
