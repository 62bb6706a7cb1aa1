"""Stands between the runner and one engine, so that no engine outlives its runner. Started by path, never imported.

Standard input is the lifeline: the runner holds its other end and the kernel closes it when the runner dies, however it
dies. The guard then stops the engine's whole process group. If the guard itself is killed, the kernel kills the engine.
Usage: guard.py GRACE_SECONDS PROGRAM [ARGUMENT…]
"""

import ctypes
import os
import select
import signal
import sys
from contextlib import suppress

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def _become_engine(guard: int, argv: list[str]) -> None:
    try:
        os.setsid()
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != guard:  # the guard died before the line above
            os._exit(1)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.closerange(3, os.sysconf("SC_OPEN_MAX") if os.sysconf("SC_OPEN_MAX") < 65536 else 65536)
        os.execv(argv[0], argv)  # noqa: S606
    except OSError as error:
        os.write(2, f"{argv[0]}: {error.strerror or error}\n".encode())
    os._exit(127)


def _signal_group(engine: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(engine, number)


def main() -> None:
    grace, argv = float(sys.argv[1]), sys.argv[2:]
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    guard = os.getpid()
    engine = os.fork()
    if engine == 0:
        _become_engine(guard, argv)
    watched = os.pidfd_open(engine)
    ready, _, _ = select.select([0, watched], [], [])
    if watched not in ready:
        _signal_group(engine, signal.SIGTERM)
        select.select([watched], [], [], grace)
        _signal_group(engine, signal.SIGKILL)
    _, status = os.waitpid(engine, 0)
    _signal_group(engine, signal.SIGKILL)  # what the engine may have left behind
    sys.exit(os.waitstatus_to_exitcode(status) & 0xFF)


if __name__ == "__main__":
    main()
