"""`python -m worker.sanitizer`."""

import sys

from worker.sanitizer.cli import main

sys.exit(main())
