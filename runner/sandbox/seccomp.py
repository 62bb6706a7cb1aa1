"""A system call filter: what no engine needs and what would reach around the rest of the sandbox is answered EPERM.

A list of what is denied, not of what is allowed: the engines' own libraries change with each version, and Landlock and
the namespaces hold what matters. It takes away kernel surface.
"""

from __future__ import annotations

import ctypes
import os
import struct

from runner.sandbox.kernel import prctl

_PR_SET_SECCOMP, _FILTER = 22, 2
_ALLOW, _EPERM = 0x7FFF0000, 0x00050001
_LOAD, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _RETURN = 0x20, 0x15, 0x35, 0x06
_X32 = 0x40000000

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_NUMBERS = {
    "x86_64": {
        "ptrace": 101, "acct": 163, "mount": 165, "umount2": 166, "swapon": 167, "swapoff": 168, "reboot": 169,
        "pivot_root": 155, "chroot": 161, "init_module": 175, "delete_module": 176, "kexec_load": 246, "add_key": 248,
        "request_key": 249, "keyctl": 250, "unshare": 272, "perf_event_open": 298, "setns": 308,
        "process_vm_readv": 310, "process_vm_writev": 311, "finit_module": 313, "kexec_file_load": 320, "bpf": 321,
        "userfaultfd": 323,
    },
    "aarch64": {
        "umount2": 39, "mount": 40, "pivot_root": 41, "chroot": 51, "acct": 89, "unshare": 97, "kexec_load": 104,
        "init_module": 105, "delete_module": 106, "ptrace": 117, "reboot": 142, "add_key": 217, "request_key": 218,
        "keyctl": 219, "swapon": 224, "swapoff": 225, "perf_event_open": 241, "setns": 268, "process_vm_readv": 270,
        "process_vm_writev": 271, "finit_module": 273, "bpf": 280, "userfaultfd": 282, "kexec_file_load": 294,
    },
}  # fmt: skip
_EVERYWHERE = {
    "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "open_tree": 428, "move_mount": 429,
    "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433, "mount_setattr": 442,
}  # fmt: skip


def program(machine: str) -> bytes:
    """The filter for a machine (``os.uname().machine``), as classic BPF. Raises `OSError` for one it does not know."""
    if machine not in _ARCHITECTURES:
        raise OSError(f"no system call filter for {machine}")
    numbers = sorted({**_NUMBERS[machine], **_EVERYWHERE}.values())
    code = [
        (_LOAD, 0, 0, 4),  # the architecture of the call
        (_JUMP_EQUAL, 1, 0, _ARCHITECTURES[machine]),
        (_RETURN, 0, 0, _EPERM),
        (_LOAD, 0, 0, 0),  # its number
    ]
    if machine == "x86_64":
        code += [(_JUMP_GREATER_EQUAL, 0, 1, _X32), (_RETURN, 0, 0, _EPERM)]
    for at, number in enumerate(numbers):
        code.append((_JUMP_EQUAL, len(numbers) - at, 0, number))
    code += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _EPERM)]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)


def restrict() -> int:
    """Put the filter on this process. Needs no new privileges to be set. Returns how many calls it denies. Raises
    `OSError`."""
    code = program(os.uname().machine)
    buffer = ctypes.create_string_buffer(code, len(code))
    filter_ = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
    prctl(_PR_SET_SECCOMP, _FILTER, ctypes.create_string_buffer(filter_, len(filter_)))
    return len(_NUMBERS[os.uname().machine]) + len(_EVERYWHERE)
