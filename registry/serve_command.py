"""``registry serve``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from registry.config.sections import DEFAULT_LISTEN, DEFAULT_STORAGE
from registry.serve import serve
from registry.settings import Settings

serve_app = typer.Typer()

_STORAGE_HELP = "A folder, or s3://BUCKET[/PREFIX]. S3 endpoint and credentials by the standard AWS variables."


@serve_app.command("serve", epilog="Example: registry serve --storage /srv/registry --listen 127.0.0.1:5000")
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
