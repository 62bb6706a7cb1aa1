"""``python -m benchmarks``: measures the registry against every other one on PATH, and writes ``results/``."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from benchmarks import machine, report
from benchmarks.registry import contestants, measurements
from benchmarks.registry.measurements import Plan
from benchmarks.registry.peers import peers

_MIB = 1024 * 1024
_RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Take what is asked for from the command line."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers are stopped
    wanted = options.only or list(measurements.ALL)
    series: list[report.Series] = []
    settings = {
        "size_mib": options.size, "rounds": options.rounds, "workers": options.workers,
        "client": machine.version("curl")[:12], "load": "wrk" if machine.version("wrk", "-v") else "built-in",
    }  # fmt: skip
    about = machine.describe()
    with tempfile.TemporaryDirectory(prefix="bench-", dir=options.scratch) as scratch, ExitStack() as stack:
        folder = Path(scratch)
        plan = Plan(folder, options.size * _MIB, options.rounds, options.seconds)
        found = peers()
        if not found:
            print("no other registry on PATH (Debian: apt-get install docker-registry): measuring without a peer")
        for store in options.stores:
            s3 = stack.enter_context(contestants.seaweedfs(folder)) if store == "s3" else None
            with ExitStack() as running:
                rivals = [running.enter_context(contestants.ours(folder, s3, options.workers))]
                rivals += [running.enter_context(contestants.peer(rival, folder, s3)) for rival in found]
                for what in wanted:
                    for item in measurements.ALL[what](plan, store, rivals):
                        print("\n".join(report.rows(item)), flush=True)
                        series.append(item)
                        report.write(options.out, options.name, series, settings, about)
    print(f"written: {options.out / options.name}.md")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--size", type=int, default=1024, metavar="MIB", help="size of a large blob (1024)")
    parser.add_argument("--rounds", type=int, default=5, help="turns each contestant gets (5)")
    parser.add_argument("--seconds", type=float, default=3, help="length of one load test (3)")
    parser.add_argument("--workers", type=int, default=1, help="server processes of ours (1)")
    parser.add_argument("--only", nargs="+", choices=list(measurements.ALL), help="what to measure (all)")
    parser.add_argument("--stores", nargs="+", choices=("folder", "s3"), default=["folder", "s3"])
    parser.add_argument("--out", type=Path, default=_RESULTS, help="where the results go")
    parser.add_argument("--name", default="registry", help="name of the result files")
    parser.add_argument("--scratch", help="where the stores lie; a disk, not a tmpfs")
    return parser.parse_args()


if __name__ == "__main__":
    main()
