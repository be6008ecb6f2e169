"""`python small_files.py BYTES PROGRAM ARG...`: run PROGRAM's file where no file can be larger, as on a disk that is full."""

from __future__ import annotations

import resource
import runpy
import sys

if __name__ == "__main__":
    limit = int(sys.argv[1])
    sys.dont_write_bytecode = True  # Python does not notice that what it wrote was cut, and reads it ever after
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    sys.argv = sys.argv[2:]
    runpy.run_path(sys.argv[0], run_name="__main__")
