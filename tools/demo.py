"""`python tools/demo.py ...` is `xsam demo ...`."""

import sys

from xsam.cli import main

if __name__ == "__main__":
    del sys.path[0]  # this folder, where `demo` is this file and not the package
    sys.exit(main(["demo", *sys.argv[1:]]))
