"""`python tools/data.py ...` is `xsam data ...`."""

import sys

from xsam.cli import main

if __name__ == "__main__":
    sys.exit(main(["data", *sys.argv[1:]]))
