"""Starts the runner: `__main__.py LINK_DIRECTORY [--any-peer]`. The interpreter is isolated, so the path is set here."""

import os
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    from runner.supervisor import main

    sys.exit(main(sys.argv[1:]))
