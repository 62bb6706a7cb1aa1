"""``registry sync``."""

from __future__ import annotations

from typing import Annotated

import typer

from artifact.terminal import note, print_json, progress_bars
from registry.sync.artifacts import SharedBlobs
from registry.sync.places import Place, pairs
from registry.sync.report import Report, RepositoryReport
from registry.sync.repository import Options, sync_repository

_PLACE = "HOST, HOST/NAME or oci:PATH"

sync_app = typer.Typer()


@sync_app.command("sync", epilog="Example: registry sync registry.example.org mirror.example.org --include 'team/**'")
def sync(
    source: Annotated[str, typer.Argument(metavar="SRC", help=f"Where from: {_PLACE}.")],
    target: Annotated[str, typer.Argument(metavar="DST", help=f"Where to: {_PLACE}.")],
    include: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="Only repositories of such names: team/** (repeatable).")
    ] = None,
    delete: Annotated[
        bool, typer.Option("--delete", help="Remove the target's tags that the source does not have (any more).")
    ] = False,
    signature_tags: Annotated[
        bool,
        typer.Option(
            "--signature-tags",
            help="List referrers under tags as well, for replicators that carry tags and drop referrers.",
        ),
    ] = False,
    concurrency: Annotated[
        int, typer.Option(min=1, max=64, help="How many artifacts, and blobs of each, move at a time.")
    ] = 4,
    plain_http: Annotated[bool, typer.Option("--plain-http", help="Use HTTP for hosts that are not loopback.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Copy repositories with their tags, referrers and signatures, keeping every digest.

    What is there already is not sent again, so a run that was broken off goes on where it stopped. Nothing is removed
    unless --delete says so. Exit status 1 if anything failed, 3 if bytes were not what their digest says.
    """
    options = Options(concurrency, delete, dry_run, signature_tags)
    work = pairs(Place.parse(source, plain_http), Place.parse(target, plain_http), include or ())
    if not work:
        note(f"note: {source} has no such repository")
    shared = SharedBlobs()
    with progress_bars() as progress:
        report = Report(tuple(sync_repository(pair, options, shared, progress) for pair in work), dry_run)
    if as_json:
        print_json(report.to_json())
    else:
        _show(report)
    if report.exit_code:
        raise typer.Exit(report.exit_code)


def _show(report: Report) -> None:
    verb = "would be " if report.dry_run else ""
    for item in report.repositories:
        typer.echo(f"{item.source} -> {item.target}: {_counts(item, verb)}")
        for failure in item.failures:
            note(f"error: {failure.what}: {failure.message}")
        for digest in item.bundles_only:
            note(
                f"note: {item.source}@{digest} is signed by bundles alone: they travel under the fallback tag; "
                "cosign's .sig tag needs the key (packager sign)"
            )
    total = report.to_json()
    typer.echo(
        f"{len(report.repositories)} repositories, {total['copied']} tags {verb}copied, "
        f"{total['referrers']} referrers, {total['blobs']} blobs ({total['bytes']} bytes), {total['failures']} failures"
    )


def _counts(item: RepositoryReport, verb: str) -> str:
    parts = [f"{len(item.copied)} tags {verb}copied", f"{len(item.unchanged)} unchanged"]
    if item.deleted:
        parts.append(f"{len(item.deleted)} {verb}deleted")
    if item.referrers:
        parts.append(f"{item.referrers} referrers")
    return ", ".join(parts)
