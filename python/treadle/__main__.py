"""``python -m treadle`` is the command line ``treadle``."""

import sys

from treadle.cli import main

sys.exit(main())
