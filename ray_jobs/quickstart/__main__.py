"""`python -m ray_jobs.quickstart`: the same as `headrace quickstart`."""

from __future__ import annotations

import sys

from ray_jobs.quickstart import main

if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # while modules were still being imported
        sys.exit(130)
