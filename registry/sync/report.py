"""What a run has done, or would do."""

from __future__ import annotations

from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from artifact.errors import StowageError


@dataclass(frozen=True)
class Failure:
    """Something that could not be copied or removed; the rest went on."""

    what: str
    message: str
    exit_code: int = 1

    @classmethod
    def of(cls, what: str, error: StowageError) -> Failure:
        return cls(what, str(error), error.exit_code if error.exit_code == 3 else 1)


@dataclass
class RepositoryReport:
    """One repository. `copied`, `unchanged` and `deleted` are tags; `referrers` is how many manifests that refer to
    others were copied, `blobs` and `bytes` what was sent for all of it. `bundles_only` are the artifacts that are
    signed by bundles alone, where cosign's older tag was asked for."""

    source: str
    target: str
    copied: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    referrers: int = 0
    blobs: int = 0
    bytes: int = 0
    bundles_only: list[str] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    lock: Lock = field(default_factory=Lock, repr=False, compare=False)

    def sent(self, size: int) -> None:
        """Count a blob."""
        with self.lock:
            self.blobs += 1
            self.bytes += size

    def failed(self, what: str, error: StowageError) -> None:
        """Count a failure."""
        with self.lock:
            self.failures.append(Failure.of(what, error))

    def to_json(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "target": self.target,
            "copied": sorted(self.copied),
            "unchanged": sorted(self.unchanged),
            "deleted": sorted(self.deleted),
            "referrers": self.referrers,
            "blobs": self.blobs,
            "bytes": self.bytes,
            "bundles_only": sorted(self.bundles_only),
            "failures": [{"what": item.what, "message": item.message} for item in self.failures],
        }


@dataclass(frozen=True)
class Report:
    """The whole run."""

    repositories: tuple[RepositoryReport, ...]
    dry_run: bool

    @property
    def failures(self) -> list[Failure]:
        return [item for repository in self.repositories for item in repository.failures]

    @property
    def exit_code(self) -> int:
        """0 if nothing failed, 3 if bytes were refused, else 1."""
        return max((item.exit_code for item in self.failures), default=0)

    def to_json(self) -> dict[str, Any]:
        each = [item.to_json() for item in self.repositories]
        return {
            "dry_run": self.dry_run,
            "repositories": each,
            "copied": sum(len(item["copied"]) for item in each),
            "unchanged": sum(len(item["unchanged"]) for item in each),
            "deleted": sum(len(item["deleted"]) for item in each),
            "referrers": sum(item["referrers"] for item in each),
            "blobs": sum(item["blobs"] for item in each),
            "bytes": sum(item["bytes"] for item in each),
            "failures": len(self.failures),
        }
