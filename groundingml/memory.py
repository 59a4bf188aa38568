"""Keeping freed memory instead of giving it back to the system after every layer.

A network's forward pass frees and asks for the same tens of megabytes hundreds of times. glibc returns such
blocks to the system at once and gets them back page by page, zeroed.
`benchmarks/end_to_end.py` measures both.
"""

from __future__ import annotations

import ctypes
import os

VARIABLE = "GROUNDINGML_KEEP_MEMORY"

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_LARGEST = (1 << 31) - 1
_OLD_LIMIT = 1 << 25  # what glibc before 2.34 takes at most


def keep_freed_memory() -> bool:
    """Make the C library keep what is freed for what is allocated next, in the whole process, from now on.

    The command `groundingml` calls this when it starts; importing the package does not, since it is not a
    library's to decide. In a program of your own call it before the first model is loaded and before
    threads are started. The process then stays as large as it once was.

    Returns:
        False, and nothing is changed, if the environment says GROUNDINGML_KEEP_MEMORY=0, or where the C
        library is not glibc (whose `mallopt` this is).
    """
    if os.environ.get(VARIABLE, "1") in ("0", "false", "no", "off"):
        return False
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018  (an attribute that only glibc has)
        mallopt = libc.mallopt
    except (OSError, TypeError, AttributeError):
        return False
    # One arena: blocks over 64 MB are kept in the main one only, and servers compute in worker threads.
    mallopt(_M_ARENA_MAX, 1)
    kept = mallopt(_M_MMAP_THRESHOLD, 1 << 30) or mallopt(_M_MMAP_THRESHOLD, _OLD_LIMIT)
    return bool(kept and mallopt(_M_TRIM_THRESHOLD, _LARGEST))
