"""Run the command line: ``python -m oxibonsai``."""

from __future__ import annotations

import sys

from oxibonsai.cli import main

if __name__ == "__main__":
    sys.exit(main())
