"""`python -m flamingo_lite` is `flamingo-lite`."""

import sys

from flamingo_lite.cli import main

if __name__ == "__main__":
    sys.exit(main())
