"""`python tools/score.py ...` is `xsam score ...`."""

import sys

from xsam.cli import main

if __name__ == "__main__":
    sys.exit(main(["score", *sys.argv[1:]]))
