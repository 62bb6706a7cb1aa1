"""Namespaces: a network with nothing in it but a loopback of its own, and shared memory nobody else sees.

Made without privileges, inside a user namespace. Some hosts forbid those; `available` finds out without harm.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from contextlib import suppress
from pathlib import Path

from runner.sandbox.kernel import call, prctl

_NEWNS, _NEWIPC, _NEWUSER, _NEWNET = 0x00020000, 0x08000000, 0x10000000, 0x40000000
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
_MS_NOSUID, _MS_NODEV, _MS_REC, _MS_PRIVATE = 2, 4, 16384, 1 << 18
_PR_CAPBSET_DROP, _PR_SET_SECUREBITS = 24, 28
_NO_ROOT_LOCKED = 0b11
_LAST_CAPABILITY = 63


def available() -> bool:
    """Whether `enter` would succeed: tried in a child process."""
    child = os.fork()
    if child == 0:
        code = 1
        with suppress(BaseException):
            enter()
            code = 0
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def enter() -> None:
    """Move this process into namespaces of its own; user and group stay the same. The process must have one thread.
    Raises `OSError`, and may then be half-way: only a process that is about to end may try without asking `available`.
    """
    user, group = os.getuid(), os.getgid()
    call("unshare", _NEWUSER | _NEWNET | _NEWNS | _NEWIPC)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    _raise_loopback()
    call("mount", b"none", b"/", None, _MS_REC | _MS_PRIVATE, None)
    call("mount", b"tmpfs", b"/dev/shm", b"tmpfs", _MS_NOSUID | _MS_NODEV, b"mode=0700")
    _drop_capabilities()


def _raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        request = struct.pack("16sH14x", b"lo", 0)
        flags = struct.unpack("16sH14x", fcntl.ioctl(probe, _SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(probe, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | _IFF_UP))


def _drop_capabilities() -> None:
    """What was needed for the above must not reach the engine, even where its user is root."""
    prctl(_PR_SET_SECUREBITS, _NO_ROOT_LOCKED)
    for capability in range(_LAST_CAPABILITY + 1):
        with suppress(OSError):  # past the last one this kernel knows
            prctl(_PR_CAPBSET_DROP, capability)
