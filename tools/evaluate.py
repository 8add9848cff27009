"""`python tools/evaluate.py ...` is `xsam evaluate ...`."""

import sys

from xsam.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
