"""`python tools/train.py ...` is `xsam train ...`."""

import sys

from xsam.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
