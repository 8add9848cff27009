"""`python tools/doctor.py ...` is `xsam doctor ...`."""

import sys

from xsam.cli import main

if __name__ == "__main__":
    sys.exit(main(["doctor", *sys.argv[1:]]))
