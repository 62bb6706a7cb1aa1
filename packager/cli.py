"""The `packager` command."""

from __future__ import annotations

import sys
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from artifact.descriptor import Descriptor
from artifact.errors import DigestMismatch, InvalidInput
from artifact.locate import base_at, local_repository, open_repository, resolve
from artifact.moved import Moved, moved, total_size
from artifact.reference import Reference, is_host
from artifact.remote import RemoteRepository
from artifact.remote.credentials import Credentials
from artifact.remote.delta import DeltaTarget
from artifact.remote.transport import Transport
from artifact.repository import Repository
from artifact.terminal import VersionOption, note, print_json, progress_bars, run
from artifact.transfer import copy_artifact
from packager.adapter import bound
from packager.attest import attest_command
from packager.attestations import Packing, attest_pack
from packager.checkpoint import Checkpoint
from packager.compared import diff_command
from packager.findings import Severity, check_allowed
from packager.inspect import card_of, card_of_artifact, show
from packager.ollama import SUFFIX
from packager.pack import Options, check, conversion_precision, converts, created_at, findings_of, pack
from packager.packed import open_packed, paths_of, sibling_of
from packager.production import LLAMA_CPP, OWN, Production, size_of
from packager.prompt import key_password, prompt
from packager.quantize.command import QuantizerOption, imatrix_command
from packager.rebuild import verify_command
from packager.signer import IdentityToken, Key, Keyless, TrustConfig, named, signer
from packager.source import is_reference, is_source, open_artifact, open_source
from packager.storing import Named
from supplychain import keys
from supplychain.predicate import check_uri
from supplychain.provenance import BUILDER
from supplychain.sign import sign

app = typer.Typer(
    name="packager",
    help="Make model artifacts: inspect a checkpoint, pack it, push it, sign it.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

PlainHttp = Annotated[bool, typer.Option("--plain-http", help="Speak HTTP to the registry, loopback or not.")]
FileFilter = Annotated[
    list[str] | None,
    typer.Option("--file-filter", metavar="GLOB", help="Take only files that match; after ! leave those out."),
]


DeltaFrom = Annotated[
    str | None,
    typer.Option("--delta-from", metavar="REF", help="An earlier version in the target's registry: send what is new."),
]


class Format(StrEnum):
    """Weight formats an artifact can have."""

    GGUF = "gguf"
    SAFETENSORS = "safetensors"


class Converter(StrEnum):
    """Programs that convert a checkpoint."""

    OWN = OWN
    LLAMA_CPP = LLAMA_CPP


class Layout(StrEnum):
    """Ways an artifact can be written."""

    MODELPACK = "modelpack"
    DOCKER = "docker"


def main() -> NoReturn:
    """Run the command line."""
    run(app)


@app.callback(epilog="Example: packager pack ./checkpoint registry.example/team/model --push --sign team.key")
def _root(version: VersionOption = False) -> None: ...


@app.command("inspect")
def inspect_command(
    source: Annotated[str, typer.Argument(help="A folder, a .gguf file, hf://ORG/NAME@REV, or a reference.")],
    deep: Annotated[
        bool, typer.Option("--deep", help="Read all weights: numbers that are none, zeros, duplicates.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    file_filter: FileFilter = None,
    plain_http: PlainHttp = False,
) -> None:
    """Show what a checkpoint or an artifact is: architecture, size, precision, licence, files, findings.

    Example: packager inspect ./SmolLM2-135M-Instruct
    """
    if is_source(source) or not is_reference(source):
        opened = open_source(source, file_filter or ())
        card, checkpoint = card_of(opened), opened if deep else None
    else:
        reference = Reference.parse(source)
        packed = open_packed(open_repository(reference, plain_http=plain_http), reference)
        card = card_of_artifact(packed)
        checkpoint = open_artifact(packed, file_filter or ()) if deep else None
    if checkpoint is not None:
        from packager.deep import deep_findings  # numpy takes a while to load

        with progress_bars() as progress:
            card = card.with_findings(deep_findings(checkpoint, progress))
    if json:
        print_json(card.to_json())
    else:
        show(card, Console(highlight=False))


@app.command("pack")
def pack_command(
    source: Annotated[str, typer.Argument(help="A checkpoint folder, a .gguf file, hf://ORG/NAME@REV, or REF.")],
    ref: Annotated[str, typer.Argument(metavar="REF", help="Where to: HOST/NAME[:TAG], NAME[:TAG] or oci:PATH[:TAG].")],
    format: Annotated[Format | None, typer.Option(help="Weight format; by default what SOURCE is.")] = None,
    precision: Annotated[
        str | None, typer.Option(metavar="TYPE", help="F32, F16, BF16, Q8_0, or one that llama.cpp makes: Q4_K_M ...")
    ] = None,
    imatrix: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Quantise by this importance matrix (packager imatrix).")
    ] = None,
    quantizer: QuantizerOption = "",
    converter: Annotated[Converter, typer.Option(help="Who converts a checkpoint.")] = Converter.OWN,
    converter_path: Annotated[
        str, typer.Option(metavar="FOLDER", help="The environment that holds llama.cpp's converter.")
    ] = "",
    split_max_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Cut GGUF into files of at most SIZE: 500M, 4G.")
    ] = None,
    layout: Annotated[Layout, typer.Option(help="How the artifact is written.")] = Layout.MODELPACK,
    file_filter: FileFilter = None,
    created: Annotated[
        str | None, typer.Option(metavar="RFC3339", help="Creation time; by default SOURCE_DATE_EPOCH, or 1970.")
    ] = None,
    push: Annotated[bool, typer.Option("--push", help="Push to the registry instead of packing locally.")] = False,
    sign_key: Annotated[
        str | None,
        typer.Option("--sign", metavar="KEY", help="Sign with this private key, and attest provenance, BOM and scan."),
    ] = None,
    sign_keyless: Annotated[bool, typer.Option("--sign-keyless", help="The same, keyless.")] = False,
    trust_config: TrustConfig = None,
    identity_token: IdentityToken = None,
    base: Annotated[str | None, typer.Option(metavar="REF", help="For an adapter: the packed model it is for.")] = None,
    ollama: Annotated[
        bool, typer.Option("--ollama", help="Add a manifest for Ollama over the same GGUF blob, under TAG-ollama.")
    ] = False,
    builder: Annotated[
        str, typer.Option(metavar="URI", envvar="STOWAGE_BUILDER", help="Who builds, as the provenance says.")
    ] = BUILDER,
    allow: Annotated[list[str] | None, typer.Option(metavar="FINDING", help="Pack despite this finding.")] = None,
    delta_from: DeltaFrom = None,
    plain_http: PlainHttp = False,
) -> None:
    """Pack a checkpoint into an artifact. The last line is NAME:TAG@DIGEST.

    Example: packager pack ./SmolLM2-135M-Instruct localhost:5000/ai/smollm2 --format gguf --precision F16 --push
    """
    target = _target(ref, push)
    options = Options(
        format.value if format else None, precision, layout.value, created_at(created), check_allowed(allow or ()),
        ollama=ollama,
        production=Production(imatrix, quantizer, converter.value, converter_path, size_of(split_max_size)),
    )  # fmt: skip
    check_uri(builder, "--builder")
    if delta_from is not None and not push:
        raise InvalidInput("--delta-from is for --push: what is packed locally travels nowhere")
    earlier = base_at(delta_from, plain_http=plain_http)
    signs = sign_key or sign_keyless or trust_config
    key = signer(sign_key, sign_keyless, trust_config, identity_token) if signs else None
    checkpoint = open_source(source, file_filter or (), plain_http=plain_http)
    if base is not None:
        checkpoint, digest = bound(checkpoint, base, plain_http=plain_http)
        options = replace(options, base=digest)
    _tell(checkpoint, options, target.tag)
    here = not push and target.host is not None
    repository = local_repository(target) if here else open_repository(target, plain_http=plain_http)
    delta = None
    if isinstance(repository, RemoteRepository) and not converts(checkpoint, options):
        delta = DeltaTarget(repository, earlier)
    packing = Packing(checkpoint, options, file_filter or (), builder)
    with progress_bars() as progress, packing.hashing_sources(progress, key is not None) as sources:
        descriptor, tag = pack(checkpoint, delta or repository, target.tag, options, progress, sources)
        packing = packing.with_sources(sources)
    if key is not None:
        attest_pack(repository, descriptor, packing, key)
        sign(repository, descriptor, key, created=options.created)
        note(f"attested and signed with {named(key)}")
    if delta is not None:
        note(moved(delta.moved, total_size(repository, descriptor)))
    if target.host is not None and not push:
        note(f"kept in the local store: packager push {target.with_tag(tag)} sends it")
    _print_result(target.with_tag(tag), descriptor)


def _target(ref: str, push: bool) -> Reference:
    target = Reference.parse(ref)
    if target.digest is not None:
        raise InvalidInput(f"{ref}: a pack makes a digest, it cannot be given one")
    if push and target.host is None:
        raise InvalidInput(f"--push needs a registry: {ref} names none (HOST[:PORT]/NAME[:TAG])")
    return target


def _tell(checkpoint: Checkpoint, options: Options, tag: str | None) -> None:
    """Refuse what must be refused; say the rest on stderr, with what was filled in for the user."""
    check(checkpoint, options, tag)
    for finding in findings_of(checkpoint, options):
        note(f"{'allowed' if finding.severity is Severity.ERROR else finding.severity}: {finding}")
    facts = checkpoint.facts
    held = f"{facts.parameters:,} parameters, {facts.precision} {facts.format}"
    if converts(checkpoint, options):
        note(f"{checkpoint.name}: {held}, converting to {conversion_precision(checkpoint, options)} gguf")
    else:
        note(f"{checkpoint.name}: {held}, packed as it is")


@app.command("push")
def push_command(
    src: Annotated[str, typer.Argument(metavar="SRC", help="The artifact to send.")],
    dst: Annotated[
        str | None, typer.Argument(metavar="[DST]", help="Where to; without it, SRC's own registry.")
    ] = None,
    all_referrers: Annotated[
        bool, typer.Option("--all-referrers", help="Send signatures and attestations with it.")
    ] = False,
    delta_from: DeltaFrom = None,
    plain_http: PlainHttp = False,
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
    _print_result(target_reference.with_tag(tag), descriptor)


_COPY_HELP = """The same as push.

Example: packager copy localhost:5000/ai/smollm2:135M-F16 oci:./smollm2
"""
app.command("copy", help=_COPY_HELP)(push_command)


@app.command("sign")
def sign_command(
    ref: Annotated[str, typer.Argument(metavar="REF", help="The artifact, in a registry, a layout or the store.")],
    key: Key = None,
    keyless: Keyless = False,
    trust_config: TrustConfig = None,
    identity_token: IdentityToken = None,
    plain_http: PlainHttp = False,
) -> None:
    """Sign an artifact: with a key, in both forms that cosign reads, or keyless, in the newer of them.

    Example: packager sign localhost:5000/ai/smollm2:135M-F16 --key cosign.key
    """
    reference = Reference.parse(ref)
    who = signer(key, keyless, trust_config, identity_token)
    repository = open_repository(reference, plain_http=plain_http)
    descriptor = resolve(repository, reference)
    sign(repository, descriptor, who)
    note(f"signed with {named(who)}")
    _print_result(reference, descriptor)


app.command("attest")(attest_command)
app.command("diff")(diff_command)
app.command("verify")(verify_command)
app.command("imatrix")(imatrix_command)


@app.command("keygen")
def keygen_command(
    prefix: Annotated[Path, typer.Argument(metavar="PREFIX", help="Writes PREFIX.key and PREFIX.pub.")],
) -> None:
    """Make a signing key pair; the private key is encrypted in cosign's format.

    The password comes from COSIGN_PASSWORD (which may be empty) or a prompt.

    Example: packager keygen release
    """
    private, public = keys.generate(prefix, key_password(confirm=True))
    note(f"private key: {private}")
    print(public)


@app.command("login")
def login_command(
    host: Annotated[str, typer.Argument(metavar="HOST", help="The registry: HOST[:PORT].")],
    username: Annotated[str | None, typer.Option("--username", "-u", help="User name; else a prompt.")] = None,
    password_stdin: Annotated[
        bool, typer.Option("--password-stdin", help="Read the password from standard input.")
    ] = False,
    plain_http: PlainHttp = False,
) -> None:
    """Try a login at a registry and keep it in Docker's config.json or the credential helper it names.

    Example: packager login registry.example.com -u ci --password-stdin < token
    """
    _check_host(host)
    if password_stdin:
        if not username:
            raise InvalidInput("--password-stdin needs --username")
        password = sys.stdin.readline().rstrip("\r\n")
    else:
        username = username or prompt("Username")
        password = prompt("Password", hidden=True)
    if not username or not password:
        raise InvalidInput("a login needs a user name and a password")
    tried = Credentials(Path(), {"auths": {host: {"username": username, "password": password}}})
    transport = Transport(host, plain_http=plain_http, credentials=tried)
    transport.request("GET", "/v2/", scope="", expect=(200, 404), what="/v2/")
    note(f"login for {host} kept in {Credentials.load().store(host, username, password)}")


@app.command("logout")
def logout_command(host: Annotated[str, typer.Argument(metavar="HOST", help="The registry: HOST[:PORT].")]) -> None:
    """Forget the login for a registry.

    Example: packager logout registry.example.com
    """
    _check_host(host)
    note(f"login for {host} {'removed' if Credentials.load().erase(host) else 'was not there'}")


def _check_host(host: str) -> None:
    if not is_host(host):
        raise InvalidInput(f"not a registry host: {host[:80]!r} (want HOST or HOST:PORT, without https://)")


def _print_result(reference: Reference, descriptor: Descriptor) -> None:
    """The last line of a command that made or moved an artifact: what to ask for to get these very bytes."""
    print(reference.with_digest(descriptor.digest), flush=True)
