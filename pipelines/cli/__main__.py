"""`python -m edgeline.pipelines.cli`: the command `edgeline`."""

import sys

from edgeline.pipelines.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
