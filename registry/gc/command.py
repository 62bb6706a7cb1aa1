"""``registry gc``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from artifact.terminal import print_json
from registry.config.read import load
from registry.config.sections import DEFAULT_STORAGE, Config
from registry.gc.collector import Collector
from registry.store.open import open_store

Storage = Annotated[
    str | None,
    typer.Option(
        "--storage",
        metavar="DIR|s3://BUCKET[/PREFIX]",
        help="A folder, or s3://BUCKET[/PREFIX]. S3 endpoint and credentials by the standard AWS variables. "
        f"Default: {DEFAULT_STORAGE}, or that of --config",
    ),
]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", metavar="registry.toml", help="registry.toml, which names the storage.")
]

gc_app = typer.Typer()


@gc_app.command("gc", epilog="Example: registry gc --storage s3://models --dry-run")
def gc(
    storage: Storage = None,
    config_file: ConfigFile = None,
    grace: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            min=0,
            help="How long what nothing needs is left alone before it is condemned, and again before it is removed; "
            "longer than the longest push. 0 only while nobody pushes. Default: a day, or [gc] grace of --config",
        ),
    ] = None,
    untagged: Annotated[
        bool, typer.Option("--untagged", help="Also remove manifests that no tag, index or subject leads to.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done and change nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Run one cycle of the garbage collector over a registry that may be in use.

    What nothing needs is condemned by one cycle and removed by a later one, a grace period after. Anything that is
    pushed, mounted or asked for meanwhile is kept.
    """
    config = load(config_file) if config_file is not None else Config()
    store = open_store(storage or config.server.storage, create=False)
    grace = config.gc.grace if grace is None else grace
    report = Collector(store, grace=grace, untagged=untagged, dry_run=dry_run).run()
    if as_json:
        print_json({"dry_run": dry_run, **report.to_json()})
    else:
        typer.echo(f"{'would be: ' if dry_run else ''}{report.to_text()}")
