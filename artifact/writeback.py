"""Having the kernel write a file to the disk while more of it arrives, so that the wait at its end is short."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

_WRITE = 2  # SYNC_FILE_RANGE_WRITE of sync_file_range(2): begin to write what is dirty, wait for nothing


def begin_writing(file: int, offset: int, length: int) -> None:
    """Begin to write `length` bytes from `offset` of an open file to the disk. Does nothing where that is not known:
    it is `os.fsync` that makes sure."""
    function = _function()
    if function is not None:
        function(file, offset, length, _WRITE)


@cache
def _function() -> Any:
    try:
        function = ctypes.CDLL(None).sync_file_range
    except (OSError, AttributeError):
        return None
    function.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return function
