"""The ``registry`` command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NoReturn

import typer

from artifact.progress import Progress
from artifact.terminal import VersionOption, print_json, progress_bars, run
from registry.audit import audit
from registry.config.command import configuration
from registry.config.read import load
from registry.config.sections import DEFAULT_LISTEN, DEFAULT_STORAGE, Config
from registry.fsck import Checker, Finding
from registry.gc.command import ConfigFile, Storage, gc
from registry.log.command import transparency
from registry.serve import serve
from registry.settings import Settings
from registry.store.open import open_store
from registry.sync.command import sync
from registry.users import users

app = typer.Typer(
    name="registry",
    help="An OCI registry for models and images over one object store: a folder, or an S3 bucket.",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)

_STORAGE_HELP = "A folder, or s3://BUCKET[/PREFIX]. S3 endpoint and credentials by the standard AWS variables."


@app.callback(epilog="Example: registry serve")
def _main(version: VersionOption = False) -> None: ...


@app.command("serve", epilog="Example: registry serve --storage /srv/registry --listen 127.0.0.1:5000")
def serve_command(
    config: Annotated[
        Path | None, typer.Option("--config", metavar="registry.toml", help="Configuration; options here win over it.")
    ] = None,
    storage: Annotated[
        str | None, typer.Option(metavar="DIR|s3://BUCKET[/PREFIX]", help=f"{_STORAGE_HELP} Default: {DEFAULT_STORAGE}")
    ] = None,
    listen: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help=f"Where to listen; port 0 picks a free one. Default: {DEFAULT_LISTEN}"),
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, max=256, help="Number of server processes. Default: 1")] = None,
    redirect: Annotated[
        bool | None,
        typer.Option(
            "--redirect/--no-redirect", help="Send clients to S3 for large blobs by presigned URLs (default)."
        ),
    ] = None,
    insecure_anonymous: Annotated[
        bool,
        typer.Option(
            "--insecure-anonymous",
            help="Listen beyond this machine although anyone who can connect may then push and delete.",
        ),
    ] = False,
    gc_interval: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", min=0, help="Collect garbage in the background this often. Default: 0, never"),
    ] = None,
    gc_grace: Annotated[float | None, typer.Option(metavar="SECONDS", min=0, help="As --grace of registry gc.")] = None,
) -> None:
    """Serve the OCI distribution API until SIGTERM or Ctrl-C, then let running requests finish."""
    path = None if config is None else str(config)
    serve(Settings(path, storage, listen, workers, redirect, insecure_anonymous, gc_interval, gc_grace))


app.add_typer(users)
app.add_typer(configuration)
app.add_typer(transparency)
app.command("audit", epilog="Example: registry audit registry.example --policy policy.yaml --state audit.state")(audit)
app.command("gc", epilog="Example: registry gc --storage s3://models --dry-run")(gc)
app.command("sync", epilog="Example: registry sync registry.example.org mirror.example.org --include 'team/**'")(sync)


@app.command(epilog="Example: registry fsck --storage /srv/registry --json")
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


def main() -> NoReturn:
    """Entry point of the ``registry`` command."""
    run(app)
