"""``python -m hybridflow``, for launchers of processes."""

import sys

from hybridflow.cli import main

sys.exit(main())
