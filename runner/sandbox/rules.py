"""What one engine may reach: the plain data that passes from the runner to the guard."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

MODES = ("auto", "required", "off")
"""``auto`` takes what the kernel offers, ``required`` refuses to start an engine without all of it."""

SYSTEM_READS = (
    "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/opt/cuda", "/proc", "/sys", "/etc/alternatives",
    "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/localtime", "/etc/locale.alias",
    "/etc/mime.types", "/etc/nsswitch.conf", "/etc/passwd", "/etc/group", "/etc/hosts", "/etc/host.conf",
    "/etc/gai.conf", "/etc/os-release", "/etc/vulkan", "/etc/OpenCL", "/etc/nvidia", "/run/nvidia-persistenced",
)  # fmt: skip
"""What programs read on every host. ``/etc`` as a whole is not in it, home folders are not, ``/opt`` and ``/srv`` are
not."""

DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty")
GPU_DEVICES = ("/dev/nvidia*", "/dev/nvidia-caps", "/dev/dri", "/dev/kfd")
"""Patterns of device files, opened for reading and writing."""


@dataclass(frozen=True)
class Rules:
    """What one engine may reach. `reads` and `writes` are folders and files, `devices` may be patterns. `loopback` says
    that it talks to itself over TCP; without it no TCP at all is allowed."""

    mode: str = "auto"
    reads: Sequence[str] = ()
    writes: Sequence[str] = ()
    devices: Sequence[str] = ()
    loopback: bool = False

    def to_json(self) -> str:
        """The rules as one argument of the guard."""
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: str) -> Rules:
        """Read what `to_json` wrote."""
        return cls(**json.loads(text))


@dataclass(frozen=True)
class Confinement:
    """What is in force around one engine. `missing` says, in words, what the kernel or the mode left out."""

    files: str = ""
    network: str = ""
    system_calls: str = ""
    privileges: str = ""
    missing: Sequence[str] = field(default_factory=tuple)

    @property
    def is_complete(self) -> bool:
        """Whether everything a sandbox should hold is held."""
        return not self.missing

    def to_json(self) -> dict[str, Any]:
        """For ``runner inspect`` and ``runner ps``."""
        return {**asdict(self), "missing": list(self.missing)}

    @classmethod
    def parse(cls, text: str) -> Confinement:
        """Read the JSON of `to_json`."""
        return cls(**json.loads(text))

    def __str__(self) -> str:
        held = "; ".join(part for part in (self.files, self.network, self.system_calls, self.privileges) if part)
        return f"{held or 'nothing'}{'; not in force: ' + ', '.join(self.missing) if self.missing else ''}"
