"""``registry transparency``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from artifact.errors import InvalidInput
from artifact.reference import Reference, is_host
from artifact.remote.transport import Transport
from artifact.terminal import note, print_json
from registry.config.read import load
from registry.log.key import LogKey, generate, verifier_of
from registry.log.monitor import watch
from registry.log.prove import prove
from registry.log.remote import RemoteLog
from registry.log.sequencer import Sequencer
from registry.log.start import Adoption
from registry.log.verify import PATIENCE, Verifier
from registry.store.open import open_store
from supplychain.tlog.entry import Entry
from supplychain.tlog.evidence import Evidence

transparency = typer.Typer(
    name="transparency",
    help="The registry's transparency log: begin it, verify it, watch it, prove what is in it.",
    epilog="Example: registry transparency verify registry.example.org --key log.key.pub",
    no_args_is_help=True,
)
transparency_app = typer.Typer()
transparency_app.add_typer(transparency)

Host = Annotated[str, typer.Argument(metavar="HOST", help="The registry.")]
Key = Annotated[
    str, typer.Option("--key", metavar="PUB", help="The log's verifier key: the file that keygen made, or its text.")
]
PlainHttp = Annotated[bool, typer.Option("--plain-http", help="Use HTTP for hosts that are not loopback.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


@transparency.command(epilog="Example: registry transparency keygen log.key --origin registry.example.org/log")
def keygen(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write the private key; must not exist.")],
    origin: Annotated[str, typer.Option(help="The log's name, as in [transparency] origin.")],
) -> None:
    """Make a log's key: FILE, which all replicas share and nobody else, and FILE.pub for everybody."""
    verifier = generate(file, origin)
    note(f"wrote {file} and {file}.pub")
    typer.echo(str(verifier))


@transparency.command(epilog="Example: registry transparency adopt --config registry.toml")
def adopt(
    config_file: Annotated[Path, typer.Option("--config", metavar="registry.toml", help="With [transparency].")],
    as_json: Json = False,
) -> None:
    """Begin a log over a registry that has tags, or take up what was done while it was switched off.

    Every tag is entered that the log does not hold as it is: look at the list that is printed. Nobody should push
    meanwhile.
    """
    config = load(config_file)
    if config.transparency is None:
        raise InvalidInput(f"{config_file} has no [transparency] section: add key and origin")
    store = open_store(config.server.storage, create=False)
    log = Sequencer(store, LogKey.load(config.transparency.key, config.transparency.origin))
    found = list(Adoption(log).run())
    size = log.read().size
    if as_json:
        print_json({"size": size, "adopted": [item.to_json() for item in found]})
        return
    for item in found:
        typer.echo(f"{item.repository}:{item.tag}  {item.digest or 'is not there any more'}")
    typer.echo(f"{len(found)} tags adopted; the log has {size} entries")


@transparency.command(epilog="Example: registry transparency verify registry.example.org --key log.key.pub")
def verify(
    host: Host,
    key: Key,
    patience: Annotated[
        float, typer.Option(metavar="SECONDS", min=0, help="For how long a tag may lag behind the log.")
    ] = PATIENCE,
    plain_http: PlainHttp = False,
    as_json: Json = False,
) -> None:
    """Replay a registry's log from its tiles, check all of it against the signed checkpoint, and compare the tags.

    Exit status 3 if anything does not follow from the log.
    """
    report = Verifier(_transport(host, plain_http), verifier_of(key), patience).run()
    if as_json:
        print_json(report.to_json())
    else:
        typer.echo("\n".join(report.lines()))
    if report.findings:
        raise typer.Exit(3)


@transparency.command(epilog="Example: registry transparency monitor registry.example.org --state log.seen --key PUB")
def monitor(
    host: Host,
    state: Annotated[Path, typer.Option("--state", metavar="FILE", help="Keeps the last checkpoint that was seen.")],
    key: Key,
    plain_http: PlainHttp = False,
    as_json: Json = False,
) -> None:
    """Check that a log has only grown since the last time, by a consistency proof computed from its tiles.

    Exit status 3 if it has shrunk, forked, or been rewritten: both checkpoints are then kept as evidence. To be run
    now and then, from somewhere else than the registry.
    """
    watched = watch(RemoteLog(_transport(host, plain_http), verifier_of(key)), state)
    if as_json:
        print_json(watched.to_json())
    elif watched.before is None:
        typer.echo(f"{watched.now.origin}: seen for the first time, {watched.now.size} entries")
    else:
        typer.echo(f"{watched.now.origin}: {watched.now.size} entries, consistent with {watched.before.size} before")


@transparency.command("prove", epilog="Example: registry transparency prove HOST/NAME:TAG --key PUB -o v1.tlog-proof")
def prove_command(
    reference: Annotated[str, typer.Argument(metavar="HOST/NAME:TAG", help="A tag, or HOST/NAME@DIGEST.")],
    key: Key,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Where to write it. Default: print it.")
    ] = None,
    plain_http: PlainHttp = False,
) -> None:
    """Make a proof that a tag's last move, or a manifest's push, is in the log, for somebody who cannot ask it.

    The proof is a c2sp.org/tlog-proof; registry transparency check reads it without a network.
    """
    found = Reference.parse(reference)
    if found.host is None or (found.tag is None and found.digest is None):
        raise InvalidInput(f"{reference} does not name a tag or digest in a registry: HOST/NAME:TAG")
    transport = _transport(found.host, plain_http)
    evidence, entry = prove(transport, RemoteLog(transport, verifier_of(key)), found)
    if output is None:
        typer.echo(evidence.to_text(), nl=False)
        return
    output.write_text(evidence.to_text())
    note(f"wrote {output}: entry {evidence.index}, {_said(entry)}")


@transparency.command("check", epilog="Example: registry transparency check v1.tlog-proof --key log.key.pub")
def check_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What registry transparency prove wrote.")],
    key: Key,
    as_json: Json = False,
) -> None:
    """Check a proof without a network, and print the entry that it proves. Exit status 3 if the signature is wrong."""
    evidence = Evidence.parse(file.read_bytes())
    checkpoint = evidence.check(verifier_of(key))
    entry = Entry.parse(evidence.entry)
    if as_json:
        said = {"action": entry.action, "repository": entry.repository, "tag": entry.tag, "time": entry.time}
        digest = str(entry.digest) if entry.digest else None
        print_json(
            {"origin": checkpoint.origin, "size": checkpoint.size, "index": evidence.index, **said, "digest": digest}
        )
        return
    typer.echo(f"{checkpoint.origin}: entry {evidence.index} of {checkpoint.size}: {_said(entry)}")


def _said(entry: Entry) -> str:
    place = f"{entry.repository}:{entry.tag}" if entry.tag else entry.repository
    return " ".join(filter(None, (entry.time, entry.action, place, str(entry.digest) if entry.digest else "")))


def _transport(host: str, plain_http: bool) -> Transport:
    if not is_host(host):
        raise InvalidInput(f"not a registry: {host[:80]!r} (want HOST[:PORT])")
    return Transport(host, plain_http=plain_http)
