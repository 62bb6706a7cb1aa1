"""``packager pack``: an artifact from a checkpoint, signed and attested in the same go if asked."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from artifact.errors import InvalidInput
from artifact.locate import base_at, local_repository, open_repository
from artifact.moved import moved, total_size
from artifact.reference import Reference
from artifact.remote import RemoteRepository
from artifact.remote.delta import DeltaTarget
from artifact.terminal import note, progress_bars
from packager.adapter import bound
from packager.attestations import Packing, attest_pack
from packager.checkpoint import Checkpoint
from packager.findings import Severity, check_allowed
from packager.options import (
    AllowOption,
    Converter,
    ConverterOption,
    ConverterPathOption,
    DeltaFromOption,
    FileFilterOption,
    PlainHttpOption,
    print_pinned,
)
from packager.pack import Options, check, conversion_precision, converts, created_at, findings_of, pack
from packager.production import Production, size_of
from packager.quantize.command import QuantizerOption
from packager.signer import IdentityToken, TrustConfig, named, signer
from packager.source import open_source
from supplychain.predicate import check_uri
from supplychain.provenance import BUILDER
from supplychain.sign import sign

pack_app = typer.Typer()


class Format(StrEnum):
    """Weight formats an artifact can have."""

    GGUF = "gguf"
    SAFETENSORS = "safetensors"


class Layout(StrEnum):
    """Ways an artifact can be written."""

    MODELPACK = "modelpack"
    DOCKER = "docker"


@pack_app.command("pack")
def pack_command(
    ctx: typer.Context,
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
    converter: ConverterOption = Converter.OWN,
    converter_path: ConverterPathOption = "",
    split_max_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Cut GGUF into files of at most SIZE: 500M, 4G.")
    ] = None,
    layout: Annotated[Layout, typer.Option(help="How the artifact is written.")] = Layout.MODELPACK,
    file_filter: FileFilterOption = None,
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
    allow: AllowOption = None,
    delta_from: DeltaFromOption = None,
    plain_http: PlainHttpOption = False,
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
    # A CI job has a token in its environment for whoever wants it: only one that is stated here asks for a signature.
    token = ctx.get_parameter_source("identity_token")
    tokened = token is not None and token.name == "COMMANDLINE"
    signs = sign_key is not None or sign_keyless or trust_config is not None or tokened
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
    print_pinned(target.with_tag(tag), descriptor)


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
