"""`python tools/parity.py ...` is `xsam parity ...`."""

import sys

from xsam.cli import main

if __name__ == "__main__":
    sys.exit(main(["parity", *sys.argv[1:]]))
