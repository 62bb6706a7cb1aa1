"""The system calls a sandbox is made of, by number and by ctypes: Python has no names for them."""

from __future__ import annotations

import ctypes
import os
from typing import Any

_LIBC = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: Any) -> int:
    """A function of the C library that returns -1 on failure. Raises `OSError`."""
    result = int(getattr(_LIBC, name)(*arguments))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def syscall(number: int, *arguments: Any) -> int:
    """A system call by its number. Raises `OSError`."""
    return call("syscall", ctypes.c_long(number), *arguments)


def prctl(option: int, second: Any = 0, third: Any = 0) -> int:
    """prctl(2). Raises `OSError`."""
    return call("prctl", option, second, third, 0, 0)
