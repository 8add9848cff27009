"""`python tools/convert.py ...` is `xsam convert ...`."""

import sys

from xsam.cli import main

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))
