"""`python -m ray_jobs.quickstart`: the same as `headrace quickstart`."""

from __future__ import annotations

import sys

from ray_jobs.quickstart import main

if __name__ == "__main__":
    sys.exit(main())
