"""``python -m artel``: the ``artel`` command."""

import sys

from artel.cli import main

sys.exit(main())
