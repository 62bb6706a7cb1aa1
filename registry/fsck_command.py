"""``registry fsck``."""

from __future__ import annotations

from typing import Annotated

import typer

from artifact.progress import Progress
from artifact.terminal import print_json, progress_bars
from registry.config.read import load
from registry.config.sections import Config
from registry.fsck import Checker, Finding
from registry.gc.command import ConfigFile, Storage
from registry.store.open import open_store

fsck_app = typer.Typer()


@fsck_app.command(epilog="Example: registry fsck --storage /srv/registry --json")
def fsck(
    storage: Storage = None,
    config_file: ConfigFile = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Change nothing: as without it, for scripts that say so."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Hash everything in the store again and report what is wrong. Changes nothing; exit status 1 if anything is.

    Reports missing blobs, wrong bytes, dangling links, orphan data and orphan uploads.
    """
    config = load(config_file) if config_file is not None else Config()
    store = open_store(storage or config.server.storage, create=False)
    with progress_bars() as bars:
        checker = Checker(store, lambda name, size: _advance(bars, name, size))
        findings = list(checker.run())
    if as_json:
        print_json(_report(checker, findings))
    else:
        for finding in findings:
            typer.echo(f"{finding.kind}  {finding.key}  {finding.message}")
        typer.echo(f"{checker.objects} objects, {checker.bytes} bytes hashed, {len(findings)} findings")
    if findings:
        raise typer.Exit(1)


def _advance(bars: Progress, name: str, size: int) -> None:
    bars.begin(name, size)
    bars.finish(name)


def _report(checker: Checker, findings: list[Finding]) -> dict[str, object]:
    return {
        "objects": checker.objects,
        "bytes": checker.bytes,
        "findings": [finding.to_json() for finding in findings],
    }
