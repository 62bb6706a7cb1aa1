"""Landlock: a process gives up every access to files and TCP ports that it does not name, for itself and its children.

Source: the kernel's Documentation/userspace-api/landlock.rst. What an older kernel cannot restrict is left out, and
`restrict` says so.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable
from pathlib import Path

from runner.sandbox.kernel import syscall

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION = 1
_PATH_BENEATH = 1

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_MAKE_CHAR, _MAKE_BLOCK = 1 << 6, 1 << 11
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_FILE_RIGHTS = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_TCP = 3
_SCOPES = 3

READ = _EXECUTE | _READ_FILE | _READ_DIR
WRITE = ((1 << 15) - 1) & ~(_EXECUTE | _MAKE_CHAR | _MAKE_BLOCK)
"""Everything a folder of one's own allows, but to run what was written there."""
DEVICE = _READ_FILE | _READ_DIR | _WRITE_FILE | _TRUNCATE | _IOCTL_DEV


def abi() -> int:
    """The version of Landlock this kernel offers; 0 if none."""
    try:
        return syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_VERSION))
    except OSError:
        return 0


def handled(version: int) -> int:
    """Every right over files that Landlock of this version can restrict."""
    rights = (1 << 13) - 1
    for since, right in ((2, _REFER), (3, _TRUNCATE), (5, _IOCTL_DEV)):
        rights |= right if version >= since else 0
    return rights


def restrict(grants: Iterable[tuple[str, int]], *, tcp: bool) -> int:
    """Give up all access to files but `grants`, paths with their rights (those that do not exist are left out); all
    TCP unless `tcp`; and signals and abstract sockets of processes outside. Needs no new privileges to be set. Returns
    the version of Landlock. Raises `OSError`."""
    version = abi()
    if not version:
        raise OSError("this kernel has no Landlock")
    rights = handled(version)
    attributes = struct.pack("QQQ", rights, _TCP if version >= 4 and not tcp else 0, _SCOPES if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(size), ctypes.c_uint32(0))
    try:
        for path, wanted in grants:
            _allow(ruleset, path, wanted & rights)
        syscall(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0))
    finally:
        os.close(ruleset)
    return version


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not Path(path).is_dir():
            rights &= _FILE_RIGHTS
        rule = struct.pack("=Qi", rights, opened)
        syscall(_ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(_PATH_BENEATH), rule, ctypes.c_uint32(0))
    finally:
        os.close(opened)
