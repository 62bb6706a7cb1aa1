"""``packager push`` and ``copy``: an artifact from one place to another."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated

import typer

from artifact.digest import Digest
from artifact.errors import DigestMismatch, InvalidInput, StowageError
from artifact.locate import base_at, local_repository, open_repository, resolve
from artifact.mediatypes import TENSOR_INDEX
from artifact.moved import Moved, total_size
from artifact.reference import Reference
from artifact.repository import Repository
from artifact.terminal import note, progress_bars
from artifact.transfer import copy_artifact
from packager.ollama import SUFFIX
from packager.options import DeltaFromOption, PlainHttpOption, print_pinned
from packager.packed import paths_of, sibling_of
from packager.storing import Named

push_app = typer.Typer()


@push_app.command("push")
def push_command(
    src: Annotated[str, typer.Argument(metavar="SRC", help="The artifact to send.")],
    dst: Annotated[str | None, typer.Argument(metavar="DST", help="Where to; without it, SRC's own registry.")] = None,
    all_referrers: Annotated[
        bool, typer.Option("--all-referrers", help="Send signatures and attestations with it.")
    ] = False,
    delta_from: DeltaFromOption = None,
    plain_http: PlainHttpOption = False,
) -> None:
    """Copy an artifact between registries, OCI layouts and the local store. The digest stays the same.

    With one argument, the local store's copy of SRC goes to the registry SRC names. A registry that can takes what it
    has already from the version its tag points at, or from the one that --delta-from names.

    Example: packager push localhost:5000/ai/smollm2:135M-F16 --all-referrers
    """
    source_reference = Reference.parse(src)
    source: Repository
    if dst is None:
        if source_reference.host is None:
            raise InvalidInput(f"{src} names no registry to push to: give DST, or HOST[:PORT]/NAME[:TAG]")
        source, target_reference = local_repository(source_reference), source_reference
        target = open_repository(target_reference, plain_http=plain_http)
    else:
        target_reference = Reference.parse(dst)
        source = open_repository(source_reference, plain_http=plain_http)
        target = open_repository(target_reference, plain_http=plain_http)
    descriptor = resolve(source, source_reference)
    if target_reference.digest not in (None, descriptor.digest):
        raise DigestMismatch(f"{src} is {descriptor.digest}, not the {target_reference.digest} that {dst} states")
    tag = target_reference.tag or source_reference.tag
    base = base_at(delta_from, plain_http=plain_http)
    with progress_bars() as progress:
        counted = Moved(progress)
        files = Named(counted, paths_of(source, descriptor))
        if tag and (sibling := sibling_of(source, descriptor)):
            copy_artifact(source, target, sibling, tag=tag + SUFFIX, progress=files)
        copy_artifact(source, target, descriptor.digest, tag=tag, progress=files, referrers=all_referrers, base=base)
    note(counted.of(total_size(source, descriptor)))
    if not all_referrers and (behind := _left_behind(source, target, descriptor.digest)):
        what = "signature or attestation stays" if behind == 1 else "signatures and attestations stay"
        note(f"note: {behind} {what} behind: --all-referrers sends what refers to it")
    print_pinned(target_reference.with_tag(tag), descriptor)


def _left_behind(source: Repository, target: Repository, digest: Digest) -> int:
    """How many referrers the target lacks, besides the tensor index, which goes along; 0 if they cannot be listed."""
    with suppress(StowageError):
        there = {item.digest for item in target.referrers(digest)}
        listed = (item for item in source.referrers(digest) if item.artifact_type != TENSOR_INDEX)
        return len({item.digest for item in listed} - there)
    return 0


_COPY_HELP = """The same as push.

Example: packager copy localhost:5000/ai/smollm2:135M-F16 oci:./smollm2
"""
push_app.command("copy", help=_COPY_HELP)(push_command)
