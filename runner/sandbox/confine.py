"""Putting the sandbox around the calling process, between fork and exec; and saying what a host would hold."""

from __future__ import annotations

import glob
import os
import resource
import sys
from collections.abc import Iterable

from runner.sandbox import landlock, namespaces, seccomp
from runner.sandbox.kernel import prctl
from runner.sandbox.rules import DEVICES, SYSTEM_READS, Confinement, Rules

_PR_SET_NO_NEW_PRIVS = 38
_MIN_ABI = 3
"""Before it, a file opened before could be truncated past the sandbox."""


def confine(rules: Rules) -> Confinement:
    """Confine this process for good by `rules`, as far as the kernel allows; return what is in force.

    With the mode ``off`` only core dumps and new privileges are given up. Raises `OSError` if a step fails that should
    not have.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    prctl(_PR_SET_NO_NEW_PRIVS, 1)
    privileges = "no new privileges, no core dumps"
    if rules.mode == "off":
        return Confinement(privileges=privileges, missing=("the sandbox: it is switched off",))
    missing: list[str] = []
    network = ""
    if namespaces.available():
        namespaces.enter()
        network = "a network of its own with nothing but loopback"
        prctl(_PR_SET_NO_NEW_PRIVS, 1)
    version = landlock.abi()
    if not network:
        missing.append("a network of its own: this host does not allow user namespaces")
        if version >= 4 and not rules.loopback:
            network = "no TCP (Landlock)"
    files = ""
    if version:
        landlock.restrict(_grants(rules), tcp=rules.loopback)
        files = f"its own files only (Landlock ABI {version})"
    if version < _MIN_ABI:
        missing.append(f"Landlock ABI {_MIN_ABI}: this kernel has {version or 'none'}")
    calls = ""
    try:
        calls = f"{seccomp.restrict()} system calls denied (seccomp)"
    except OSError as error:
        missing.append(f"a system call filter: {error.strerror or error}")
    return Confinement(files, network, calls, privileges, tuple(missing))


def foreseen(rules: Rules) -> Confinement:
    """What `confine` would put in force on this host, found out in a child process."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            from json import dumps

            os.write(writing, dumps(confine(rules).to_json()).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as stream:
        text = stream.read()
    os.waitpid(child, 0)
    return Confinement.parse(text) if text else Confinement(missing=("the sandbox: it could not be set up",))


def _grants(rules: Rules) -> Iterable[tuple[str, int]]:
    for path in (*SYSTEM_READS, *rules.reads):
        yield path, landlock.READ
    for path in rules.writes:
        yield path, landlock.READ & ~1 | landlock.WRITE
    for pattern in (*DEVICES, *rules.devices):
        for path in glob.glob(pattern):  # noqa: PTH207
            yield path, landlock.DEVICE


if __name__ == "__main__":  # to see what this host offers: python -m runner.sandbox.confine
    sys.stdout.write(f"{foreseen(Rules())}\n")
