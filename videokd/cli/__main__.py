"""`python -m videokd.cli`."""

import sys

from videokd.cli import main

sys.exit(main())
