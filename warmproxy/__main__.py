"""`python -m warmproxy` is `warmproxy`."""

import sys

from warmproxy.cli import main

if __name__ == "__main__":
    sys.exit(main())
