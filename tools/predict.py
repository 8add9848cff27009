"""`python tools/predict.py ...` is `xsam predict ...`."""

import sys

from xsam.cli import main

if __name__ == "__main__":
    sys.exit(main(["predict", *sys.argv[1:]]))
