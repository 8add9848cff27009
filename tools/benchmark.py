"""`python tools/benchmark.py ...` is `xsam benchmark ...`."""

import sys

from xsam.cli import main

if __name__ == "__main__":
    sys.exit(main(["benchmark", *sys.argv[1:]]))
