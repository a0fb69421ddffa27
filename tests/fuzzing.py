"""How long the loops over random damage run: `HTA_TEST_TIMES` multiplies their rounds, for runs by hand."""

import os

TIMES = int(os.environ.get("HTA_TEST_TIMES", "1"))
