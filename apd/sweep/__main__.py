import sys

from apd.sweep.command import main

if __name__ == "__main__":
    sys.exit(main())
