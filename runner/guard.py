"""Stands between the runner and one engine, so that no engine outlives its runner. Started by path, never imported.

Standard input is the lifeline: the runner holds its other end and the kernel closes it when the runner dies, however it
dies. The guard then stops the engine's whole process group, and before it ends everything that the engine has left,
also what went into a session of its own. If the guard itself is killed, the kernel kills the engine. The sandbox goes
around the engine only, just before it is started, and what is in force is written to REPORT, a descriptor.
Usage: guard.py GRACE_SECONDS RULES REPORT PROGRAM [ARGUMENT…]
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from contextlib import suppress
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # after the standard library, which is all it needs else

from runner.sandbox.confine import confine
from runner.sandbox.kernel import prctl
from runner.sandbox.rules import Rules

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_REFUSED = 126


def _become_engine(guard: int, rules: Rules, report: int, argv: list[str]) -> None:
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        report = os.dup2(report, 3, inheritable=False)
        os.closerange(4, os.sysconf("SC_OPEN_MAX") if os.sysconf("SC_OPEN_MAX") < 65536 else 65536)
        held = confine(rules)
        os.write(report, json.dumps(held.to_json()).encode())
        if rules.mode == "required" and not held.is_complete:
            os.write(2, f"--sandbox required: not in force: {', '.join(held.missing)}\n".encode())
            os._exit(_REFUSED)
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # a new user namespace would have cleared it
        if os.getppid() != guard:  # the guard died before the line above
            os._exit(1)
        os.execv(argv[0], argv)  # noqa: S606
    except OSError as error:
        os.write(2, f"{argv[0]}: {error.strerror or error}\n".encode())
    os._exit(127)


def _signal_group(engine: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(engine, number)


def _kill_children() -> None:
    """Kill what the engine has left behind: orphans become children of the guard, and theirs too when they die."""
    while children := " ".join(path.read_text() for path in Path("/proc/self/task").glob("*/children")).split():
        for pid in map(int, children):
            os.kill(pid, signal.SIGKILL)  # nobody else reaps it, so the number is still its own
            os.waitpid(pid, 0)


def main() -> None:
    grace, rules, report, argv = float(sys.argv[1]), Rules.parse(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
    prctl(_PR_SET_CHILD_SUBREAPER, 1)
    guard = os.getpid()
    engine = os.fork()
    if engine == 0:
        _become_engine(guard, rules, report, argv)
    os.close(report)
    watched = os.pidfd_open(engine)
    ready, _, _ = select.select([0, watched], [], [])
    if watched not in ready:
        _signal_group(engine, signal.SIGTERM)
        select.select([watched], [], [], grace)
        _signal_group(engine, signal.SIGKILL)
    _, status = os.waitpid(engine, 0)
    _kill_children()
    sys.exit(os.waitstatus_to_exitcode(status) & 0xFF)


if __name__ == "__main__":
    main()
