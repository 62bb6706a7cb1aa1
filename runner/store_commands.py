"""``runner save``, ``load``, ``df``, ``prune`` and ``fsck``: moving models by file, and looking after the store."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from artifact.errors import DigestMismatch, InvalidInput
from artifact.reference import Reference
from artifact.terminal import JsonOption, note, print_json, progress_bars
from runner.archive import ArchiveRepository, extract_policy, iterate, save
from runner.completion import complete_reference
from runner.options import PolicyOption, StoreOption
from runner.pull import absolute, fetch, find_in
from runner.report import human_bytes, print_table
from runner.store import Store
from runner.upkeep import fsck, prune, usage
from runner.wishes import load_policy

store_app = typer.Typer()

_DURATION = re.compile(r"([0-9]{1,9})([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_SIZE = re.compile(r"([0-9]{1,12})(?:([KMGT])(?:i?B)?|B?)", re.IGNORECASE)
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]


@store_app.command("save", epilog="Example: runner save team/model:4B-Q4_K_M model.tar --policy policy.yaml")
def save_command(
    ref: Annotated[str, typer.Argument(metavar="REF", autocompletion=complete_reference)],
    file: Annotated[Path, typer.Argument(metavar="FILE")],
    policy: Annotated[Path | None, typer.Option(help="A policy that shall travel with it, its keys included.")] = None,
    store: StoreOption = None,
) -> None:
    """Write a stored model with its signatures and attestations to a tar file."""
    reference = absolute(Reference.parse(ref))
    digest = save(reference, Store(store), file, policy)
    note(f"saved {reference} to {file}, {human_bytes(file.stat().st_size)}")
    print(f"{reference.repository}@{digest}")


@store_app.command("load", epilog="Example: runner load model.tar --policy policy.yaml")
def load_command(
    file: Annotated[Path, typer.Argument(metavar="FILE")],
    policy: PolicyOption = None,
    policy_to: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Only write the policy that travels in the file, and stop.")
    ] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bring the models of a tar file into the store, verified; print NAME@DIGEST for each."""
    archive = ArchiveRepository(file)
    if policy_to is not None:
        extract_policy(archive, policy_to)
        note(f"the policy is in {policy_to}: read it before you rely on it")
        return
    place, rules = Store(store), load_policy(policy)
    if rules is None and archive.policy is not None:
        note("note: a policy travels in this file: --policy-to FILE writes it out, --policy FILE applies it")
    found = [find_in(origin, reference, subject, place, rules) for reference, subject, origin in iterate(archive)]
    with progress_bars() as progress:
        for item in found:
            fetch(item, place, progress)
            if not as_json:
                print(item.pinned)
    if as_json:
        print_json([{"reference": item.pinned, "digest": str(item.model.digest)} for item in found])


@store_app.command("df", epilog="Example: runner df --json")
def df_command(store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Show how much the store holds."""
    place = Store(store)
    shown = usage(place)
    if as_json:
        print_json({"store": str(place.root), "system": str(place.system or ""), **shown.to_json()})
        return
    value = shown.to_json()
    rows = [(key, human_bytes(value[key])) for key in value if key != "models"]
    print_table(("", str(place.root)), [("models", str(shown.models)), *rows])


@store_app.command("prune", epilog="Example: runner prune --older-than 30d --keep-size 100GiB --dry-run")
def prune_command(
    older_than: Annotated[
        str | None, typer.Option(metavar="TIME", help="Models not used for so long, such as 12h, 30d or 8w.")
    ] = None,
    keep_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Those used longest ago, until the rest fit into SIZE.")
    ] = None,
    dry_run: DryRunOption = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Remove what nothing needs, and models by age and size. What is being served stays."""
    pruned = prune(
        Store(store),
        older_than=seconds(older_than) if older_than else None,
        keep_size=size(keep_size) if keep_size else None,
        dry_run=dry_run,
    )
    if as_json:
        print_json(pruned.to_json())
        return
    for label in (*pruned.models, *pruned.leftovers):
        print(f"{'would remove' if dry_run else 'removed'} {label}")
    note(f"{human_bytes(pruned.freed)} {'would be ' if dry_run else ''}freed")


@store_app.command("fsck", epilog="Example: runner fsck --dry-run")
def fsck_command(dry_run: DryRunOption = False, store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Hash every blob of the store again; remove damaged ones, which the next pull then fetches. Exit status 3 if there
    are any."""
    with progress_bars() as progress:
        damaged = fsck(Store(store), progress, dry_run=dry_run)
    if as_json:
        print_json([{"digest": str(digest), "models": models} for digest, models in damaged])
    else:
        for digest, models in damaged:
            print(f"damaged {digest} of {', '.join(models) or 'no model'}")
    if damaged:
        what = "are damaged" if dry_run else "were damaged and have been removed: pull their models again"
        raise DigestMismatch(f"{len(damaged)} blobs {what}")
    note("every blob is what its digest says")


def seconds(text: str) -> float:
    """A time such as ``12h``, ``30d`` or ``8w``, in seconds. Raises `InvalidInput`."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise InvalidInput(f"--older-than must be a time such as 12h, 30d or 8w, not {text[:40]!r}")
    return float(match[1]) * _SECONDS[match[2]]


def size(text: str) -> int:
    """A size such as ``100GiB`` or ``800M``, in bytes; units are powers of 1024. Raises `InvalidInput`."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise InvalidInput(f"--keep-size must be a size such as 100GiB or 800M, not {text[:40]!r}")
    power: int = 1024 ** " KMGT".index((match[2] or " ").upper())
    return int(match[1]) * power
