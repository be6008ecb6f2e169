"""Print those of the wheels whose packages this Python has not: missing_wheels.py WHEEL..."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path


def main() -> None:
    """A line a wheel. A package that is there in another version stays."""
    for wheel in sys.argv[1:]:
        try:
            metadata.version(Path(wheel).name.partition("-")[0])
        except metadata.PackageNotFoundError:
            print(wheel)


if __name__ == "__main__":
    main()
