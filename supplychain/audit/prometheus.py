"""Results as a Prometheus textfile, for the node exporter's textfile collector."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TextIO

from supplychain.audit.record import Record, Status
from supplychain.audit.tally import Tally

_PREFIX = "stowage_audit"
_Sample = tuple[Mapping[str, str], float]


class Prometheus:
    """Writes gauges when the audit ends."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def add(self, record: Record) -> None: ...

    def end(self, tally: Tally) -> None:
        registries = sorted({registry for registry, _ in tally.statuses})
        self._gauge("artifacts", "Artifacts (references) by how they are signed.", (
            ({"registry": registry, "status": status.value}, tally.statuses[registry, status])
            for registry in registries for status in Status
        ))  # fmt: skip
        self._gauge("verdicts", "Artifacts by what the policy says of them, and why.", (
            ({"registry": registry, "verdict": verdict, "code": code}, count)
            for (registry, verdict, code), count in sorted(tally.verdicts.items())
        ))  # fmt: skip
        self._gauge("refused", "Artifacts that the policy refuses, by repository; those without any are left out.", (
            ({"registry": registry, "repository": repository}, count)
            for (registry, repository), count in sorted(tally.refused.items())
        ))  # fmt: skip
        for name, help_, value in (
            ("repositories", "Repositories that were looked at.", tally.repositories),
            ("reused_artifacts", "Artifacts that had not changed and were not fetched again.", tally.reused),
            ("requests", "Requests that were sent.", tally.requests),
            ("duration_seconds", "How long the audit took.", tally.seconds),
            ("end_timestamp_seconds", "When the audit ended.", tally.ended),
            ("complete", "Whether everything could be looked at.", tally.complete),
        ):
            self._gauge(name, help_, [({}, float(value))])
        self._stream.flush()

    def _gauge(self, name: str, help_: str, samples: Iterable[_Sample]) -> None:
        self._stream.write(f"# HELP {_PREFIX}_{name} {help_}\n# TYPE {_PREFIX}_{name} gauge\n")
        for labels, value in samples:
            shown = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
            self._stream.write(f"{_PREFIX}_{name}{f'{{{shown}}}' if shown else ''} {value!r}\n")


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
