"""Lock files of engines: everything an engine needs, each in one version and with the digests of its files.

They ship beside this module in ``locks/``, in pip's requirements format, with what they are for in comments of the form
``# key: value`` at their top. A line ``# then:`` divides what must be there before the rest can be built.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from artifact.errors import InvalidInput, NotFound
from runner.engines.host import GIB, Host
from runner.engines.installed import version_key

LOCKS = Path(__file__).with_name("locks")
VARIANTS = ("cpu", "cuda")
STAGE = "# then:"

_FIELD = re.compile(r"# ([a-z-]+): (.*)")
_PIN = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([^ \\]+)")


@dataclass(frozen=True)
class Lock:
    """One lock file. `fields` are its comments: ``name``, ``version``, ``variant``, ``python``, ``machine`` and what
    the engine asks of a host."""

    path: Path
    fields: Mapping[str, str]
    text: str

    @classmethod
    def load(cls, path: Path) -> Lock:
        """Read a lock file."""
        text = path.read_text(encoding="utf-8")
        fields: dict[str, str] = {}
        for line in text.splitlines():
            if line == STAGE or not line.startswith("#"):
                break
            if match := _FIELD.fullmatch(line):
                fields[match[1]] = match[2]
        return cls(path, fields, text)

    @property
    def name(self) -> str:
        """The engine."""
        return self.fields["name"]

    @property
    def version(self) -> str:
        """The engine's version."""
        return self.fields["version"]

    @property
    def variant(self) -> str:
        """``cpu`` or ``cuda``."""
        return self.fields["variant"]

    @property
    def identity(self) -> str:
        """The file's name with the digest of its bytes: what installed engines and commands are recorded with."""
        return f"{self.path.name}@sha256:{hashlib.sha256(self.text.encode()).hexdigest()}"

    @property
    def stages(self) -> Sequence[str]:
        """What is installed in one step each, in order."""
        return self.text.split(f"{STAGE}\n")

    @property
    def cmake(self) -> str:
        """The options with which the last stage is compiled, empty if nothing is."""
        return self.fields.get("cmake", "")

    @property
    def cmake_variables(self) -> Sequence[tuple[str, str]]:
        """Variables of CMake that its options cannot set, because the project's own lists set them again."""
        pairs = (item.partition("=") for item in self.fields.get("cmake-variables", "").split())
        return [(name, value) for name, _, value in pairs]

    @property
    def packages(self) -> Sequence[str]:
        """Everything in it, ``name==version``."""
        return [match[0] for line in self.text.splitlines() if (match := _PIN.match(line))]

    def obstacles(self, host: Host) -> list[str]:
        """Why this engine cannot work on `host`; empty if nothing speaks against it."""
        found: list[str] = []
        wanted = self.fields.get("machine", host.machine)
        if host.machine != wanted:
            found.append(f"it is for {wanted}, this is {host.machine}")
        lacking = [name for name in self.fields.get("cpu-features", "").split() if name not in host.features]
        if lacking:
            found.append(f"the processor has no {', '.join(name.upper() for name in lacking)}")
        least = int(self.fields.get("memory-gib", "0"))
        if host.memory < least * GIB:
            found.append(f"it needs {least} GiB of memory, this host has {host.memory / GIB:.1f}")
        if self.variant == "cuda":
            found += self._gpu_obstacles(host)
        return found

    def build_obstacles(self, host: Host) -> list[str]:
        """Why this engine cannot be installed on `host`, apart from its `obstacles`: what it is compiled with."""
        lacking = [name for name in self.fields.get("compilers", "").split() if name not in host.compilers]
        if not lacking:
            return []
        return [
            f"it is compiled here, and there is no {' and no '.join(f'{name} compiler' for name in lacking)} on PATH: "
            "install gcc and g++ (or clang), or name them in $CC and $CXX"
        ]

    def _gpu_obstacles(self, host: Host) -> list[str]:
        if not host.driver:
            return ["there is no NVIDIA GPU with a working driver"]
        least = self.fields.get("driver", "0")
        if version_key(host.driver) < version_key(least):
            return [f"it needs NVIDIA driver {least}, this host has {host.driver}"]
        return []


def locks() -> list[Lock]:
    """Every lock file that ships, the newest version of each engine first."""
    found = [Lock.load(path) for path in sorted(LOCKS.glob("*.txt"))]
    found.sort(key=lambda lock: version_key(lock.version), reverse=True)
    return sorted(found, key=lambda lock: (lock.name, lock.variant))


def find_locks(wanted: str, variant: str | None) -> list[Lock]:
    """The lock files for ``NAME[==VERSION]``: of one version and variant, one for each Python it can be installed in.
    Without a variant, the only one there is, or ``cpu``. Raises `NotFound`, `InvalidInput`."""
    name, stated, version = wanted.partition("==")
    if variant is not None and variant not in VARIANTS:
        raise InvalidInput(f"--variant must be {' or '.join(VARIANTS)}, not {variant!r}")
    named = [lock for lock in locks() if lock.name == name]
    if not named:
        raise NotFound(f"no engine {name!r}: there are {', '.join(sorted({lock.name for lock in locks()}))}")
    variants = {lock.variant for lock in named}
    variant = variant or ("cpu" if "cpu" in variants else min(variants))
    fitting = [lock for lock in named if lock.variant == variant and (not stated or lock.version == version)]
    if not fitting:
        known = ", ".join(sorted({f"{lock.version} ({lock.variant})" for lock in named}))
        raise NotFound(f"no lock file for {wanted} in the variant {variant}: there are {known}; or use --engine-path")
    return [lock for lock in fitting if lock.version == fitting[0].version]
