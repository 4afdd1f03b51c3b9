import sys

from apd.doctor.command import main

if __name__ == "__main__":
    sys.exit(main())
