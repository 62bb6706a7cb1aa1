"""LoRA adapters: what is trained on top of a model, packed by itself and bound to the model it is for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from artifact.digest import Digest
from artifact.errors import InvalidInput, Malformed, NotFound
from artifact.filepath import checked_paths
from artifact.filetypes import is_pickle_name
from artifact.locate import open_repository
from artifact.reference import Reference
from artifact.weights.precision import facts_of
from packager.checkpoint import Checkpoint, PackFile, in_order
from packager.content import Content
from packager.description import from_checkpoint
from packager.files import Kind, is_license, kind_of
from packager.findings import Finding
from packager.huggingface import content_findings, header_of, pickle_finding, read_json, readme_of
from packager.packed import open_packed

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


def open_files(place: str, listed: Mapping[str, Content], findings: list[Finding]) -> Checkpoint:
    """Open the adapter that PEFT has written into the files `listed`. Raises `NotFound` without its weights,
    `Malformed` if it is another kind of adapter than LoRA."""
    config = read_json(listed[CONFIG], f"{place}/{CONFIG}")
    kind = config.get("peft_type")
    if kind != "LORA":
        raise Malformed(f"{place}/{CONFIG}: an adapter of type {str(kind)[:40]!r}; only LORA is packed")
    findings += [pickle_finding(path) for path in listed if is_pickle_name(path)]
    if WEIGHTS not in listed:
        raise NotFound(f"{place}: an adapter without {WEIGHTS}")
    header = header_of(place, WEIGHTS, listed[WEIGHTS])
    files = [PackFile(WEIGHTS, Kind.WEIGHT, listed[WEIGHTS])]
    for path, content in listed.items():
        found = kind_of(path)
        if found is Kind.WEIGHT or found is None:
            if path != WEIGHTS and not is_pickle_name(path):
                findings.append(Finding("file-skipped", "not a file of the adapter, not packed", path))
        elif found in (Kind.DOC, Kind.CODE) or path.endswith((".json", ".jinja")):
            files.append(PackFile(path, found, content))
    description = from_checkpoint({}, readme_of(listed))
    findings += content_findings(files)
    if not description.licenses and not any(is_license(file.path) for file in files):
        findings.append(Finding("license-missing", "no licence file, and the model card states none"))
    checked_paths([file.path for file in files])
    facts = facts_of([header])
    return Checkpoint(place, in_order(files), (header,), facts, description, None, tuple(findings), adapter=True)


def bound(checkpoint: Checkpoint, base: str, *, plain_http: bool = False) -> tuple[Checkpoint, Digest]:
    """The adapter with the architecture of the model `base` names, and the digest of that model's manifest.

    Raises `InvalidInput` if it is no adapter, or one for another architecture; `NotFound`, `DigestMismatch`.
    """
    if not checkpoint.adapter:
        raise InvalidInput(f"--base is for adapters: {checkpoint.place} is a whole model")
    reference = Reference.parse(base)
    packed = open_packed(open_repository(reference, plain_http=plain_http), reference)
    needed, held = checkpoint.description.architecture, packed.config.architecture
    if needed and held and needed != held:
        raise InvalidInput(f"{checkpoint.place} is an adapter for {needed}, {base} is {held}")
    description = replace(checkpoint.description, architecture=needed or held)
    return replace(checkpoint, description=description), packed.descriptor.digest
