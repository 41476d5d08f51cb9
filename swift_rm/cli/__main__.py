"""`python -m swift_rm.cli`, where no script is installed."""

import sys

from swift_rm.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
