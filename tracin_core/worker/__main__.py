"""`python -m tracin_core.worker`: the worker process."""

import sys

from tracin_core.worker.serving import main

if __name__ == "__main__":
    sys.exit(main())
