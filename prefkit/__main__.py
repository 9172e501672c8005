"""`python -m prefkit`, for launchers that start modules: `torchrun … -m prefkit train …`."""

import sys

from prefkit.cli.main import main

sys.exit(main())
