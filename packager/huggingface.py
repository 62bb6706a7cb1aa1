"""A checkpoint that is a Hugging Face folder: config.json, safetensors with or without an index, tokenizer files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from artifact.errors import Malformed, NotFound
from artifact.filepath import checked_path, checked_paths
from artifact.manifest import load_json
from artifact.weights import safetensors
from artifact.weights.precision import facts_of
from artifact.weights.tensor import WeightFile
from packager.checkpoint import CHAT_TEMPLATE, Checkpoint, PackFile, in_order
from packager.description import from_checkpoint
from packager.files import PICKLE_MAGIC, Kind, is_license, is_pickle_name, kind_of, shards_of
from packager.findings import Finding
from packager.folder import list_files
from packager.template import MAX_TEMPLATE, chosen, named_templates, template_findings

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_MAX_JSON = 32 * 1024 * 1024
_MAX_README = 1024 * 1024
_PLAIN_JSON = ("tokenizer.json", "vocab.json", "added_tokens.json", "modules.json", _INDEX)
"""JSON files in which no engine looks for code; the first ones can be large, the next to last is a list."""
_TEMPLATE_CONFIGS = ("chat_template.json", "tokenizer_config.json")
_NO_LIMIT = 10**9
"""A model_max_length from here on means none was set."""
_CODE_KEYS = ("auto_map", "custom_pipelines")
_TOKENIZERS = ({"tokenizer.json"}, {"tokenizer.model"}, {"vocab.json", "merges.txt"}, {"vocab.txt"}, {"tekken.json"})


def open_folder(folder: Path, place: str, globs: Sequence[str] = ()) -> Checkpoint:
    """Open a checkpoint folder; `place` names it in messages, `globs` are those of ``--file-filter``.

    Reads configurations and headers, not tensors. Raises `NotFound` if it is no checkpoint or lacks a shard,
    `Malformed` on what cannot be a sound checkpoint. What is merely unsafe or missing is in its findings.
    """
    listed, findings = list_files(folder, globs)
    config = _config(place, listed)
    findings += [_pickle(path) for path in listed if is_pickle_name(path)]
    weights = _weights(place, listed, findings)
    files = []
    for path, location in listed.items():
        kind = kind_of(path)
        if kind is Kind.WEIGHT and path not in weights:
            if "/" in path:
                raise Malformed(f"{place}/{path}: a module with weights of its own cannot be packed yet")
            kind = None
        if kind is not None:
            files.append(PackFile.on_disk(path, kind, location))
        elif not is_pickle_name(path):
            findings.append(Finding("file-skipped", "not a file of the model that is loaded, not packed", path))
    readme = _readme(listed)
    description = from_checkpoint(config, readme)
    findings += _content_findings(files)
    if not description.licenses and not any(is_license(file.path) for file in files):
        findings.append(Finding("license-missing", "no licence file, and the model card states none"))
    findings += _context_findings(description.context_length, listed)
    template, files = _chat_template(files, config, findings)
    checked_paths([file.path for file in files])
    headers = tuple(weights.values())
    return Checkpoint(
        place, in_order(files), headers, facts_of(headers), description, template, tuple(findings), folder
    )


def _config(place: str, listed: Mapping[str, Path]) -> dict[str, Any]:
    path = listed.get("config.json")
    if "model_index.json" in listed:
        raise Malformed(f"{place}: a diffusers pipeline, not a language model; it cannot be packed")
    if path is None:
        if "adapter_config.json" in listed:
            raise Malformed(f"{place}: an adapter without its base model cannot be packed; merge it first")
        if any(name.endswith(".gguf") for name in listed):
            raise NotFound(f"{place}: no config.json; to pack a GGUF file, name the file itself")
        raise NotFound(f"{place}: not a checkpoint: it has no config.json")
    config = _json(path, f"{place}/config.json")
    quantization = config.get("quantization")
    if isinstance(quantization, dict) and "group_size" in quantization and "bits" in quantization:
        raise Malformed(f"{place}: quantised for MLX, which neither vLLM nor llama.cpp loads; pack the original")
    return config


def _json(path: Path, what: str) -> dict[str, Any]:
    if path.stat().st_size > _MAX_JSON:
        raise Malformed(f"{what} is larger than {_MAX_JSON} bytes")
    return load_json(path.read_bytes(), what, _MAX_JSON)


def _weights(place: str, listed: Mapping[str, Path], findings: list[Finding]) -> dict[str, WeightFile]:
    """The headers of the weight files the model is loaded from, by path. Others are no part of it."""
    index = listed.get(_INDEX)
    if index is not None:
        return _indexed(place, listed, _json(index, f"{place}/{_INDEX}"), findings)
    names = [name for name in listed if name.endswith(".safetensors") and "/" not in name]
    if _SINGLE in names:
        names = [_SINGLE]
    if not names:
        pickles = next((name for name in listed if is_pickle_name(name)), None)
        told = f"only pickles ({pickles}), which run code when loaded and are never packed" if pickles else "no weights"
        raise NotFound(f"{place}: {told}; want *.safetensors")
    for name in names:
        _check_set(place, name, listed)
    return {name: _header(place, name, listed[name]) for name in names}


def _check_set(place: str, name: str, listed: Mapping[str, Path]) -> None:
    for shard in shards_of(name) or ():
        if shard not in listed:
            raise NotFound(f"{place}: shard {shard} is missing")


def _indexed(
    place: str, listed: Mapping[str, Path], index: Mapping[str, Any], findings: list[Finding]
) -> dict[str, WeightFile]:
    mapping = index.get("weight_map")
    if not isinstance(mapping, dict) or not mapping or not all(isinstance(name, str) for name in mapping.values()):
        raise Malformed(f"{place}/{_INDEX}: weight_map must map tensors to files")
    weights: dict[str, WeightFile] = {}
    for name in sorted(set(mapping.values())):
        if checked_path(name) not in listed:
            raise NotFound(f"{place}: shard {name} is missing; {_INDEX} names it")
        if not name.endswith(".safetensors"):
            raise Malformed(f"{place}/{_INDEX}: {name} is not a safetensors file")
        weights[name] = _header(place, name, listed[name])
    held = {name: {tensor.name for tensor in file.tensors} for name, file in weights.items()}
    for tensor, name in mapping.items():
        if tensor not in held[name]:
            raise Malformed(f"{place}/{name}: no tensor {tensor[:120]!r}, which {_INDEX} says is there")
    for name, tensors in held.items():
        extra = sorted(tensor for tensor in tensors if mapping.get(tensor) != name)
        if extra:
            findings.append(
                Finding("index-incomplete", f"{len(extra)} tensors not in the index, as {extra[0]!r}", name)
            )
    return weights


def _header(place: str, name: str, path: Path) -> WeightFile:
    try:
        return safetensors.read_header(path)
    except Malformed as error:
        # In a hub cache the file on disk has a hash for a name: say the name it has in the checkpoint.
        raise Malformed(f"{place}/{name}: {str(error).removeprefix(f'{path.name}: ')}") from None


def _readme(listed: Mapping[str, Path]) -> str:
    path = listed.get("README.md")
    if path is None or path.stat().st_size > _MAX_README:
        return ""
    return path.read_text("utf-8", errors="replace")


def _content_findings(files: list[PackFile]) -> Iterator[Finding]:
    """What in the packed files is dangerous, or missing among them."""
    paths = {file.path for file in files}
    for file in files:
        assert isinstance(file.content, Path)
        if file.kind is Kind.CODE:
            yield Finding("python-code", "Python source is not packed by default: an engine may run it", file.path)
        if file.kind is not Kind.WEIGHT:
            with file.content.open("rb") as stream:
                if PICKLE_MAGIC.match(stream.read(2)):
                    yield _pickle(file.path)
        if file.path.endswith(".json") and file.path.rpartition("/")[2] not in _PLAIN_JSON:
            yield from _code_references(file.path, file.content)
    if not any(files_ <= paths for files_ in _TOKENIZERS) and not any(path.endswith(".tiktoken") for path in paths):
        yield Finding("tokenizer-missing", "no tokenizer.json, tokenizer.model or vocabulary")


def _context_findings(context: int | None, listed: Mapping[str, Path]) -> Iterator[Finding]:
    path = listed.get("tokenizer_config.json")
    if path is None or context is None:
        return
    longest = _json(path, "tokenizer_config.json").get("model_max_length")
    if type(longest) is int and context < longest < _NO_LIMIT:
        told = f"model_max_length is {longest}, the model's context {context}"
        yield Finding("context-length", told, "tokenizer_config.json")


def _pickle(path: str) -> Finding:
    return Finding("pickle", f"a pickle runs code when it is loaded; leave it out with --file-filter '!{path}'", path)


def _code_references(path: str, location: Path) -> Iterator[Finding]:
    if location.stat().st_size > _MAX_JSON:
        raise Malformed(f"{path} is larger than {_MAX_JSON} bytes")
    # Wrapped, because a file that is a list is read like one that is an object.
    pending: list[Any] = [load_json(b'{"document":%b}' % location.read_bytes(), path, 2 * _MAX_JSON)]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            yield from (
                Finding("auto-map", f"{key} names Python code for an engine to run", path)
                for key in _CODE_KEYS
                if value.get(key)
            )
            pending.extend(value.values())
        elif isinstance(value, list):
            pending.extend(value)


def _chat_template(
    files: list[PackFile], config: Mapping[str, Any], findings: list[Finding]
) -> tuple[str | None, list[PackFile]]:
    """The one chat template, and the files with exactly one top-level ``*.jinja`` if there is a template at all."""
    by_path = {file.path: file for file in files}
    stated: dict[str, str] = {}
    for path in _TEMPLATE_CONFIGS:
        named = _config_templates(by_path.get(path))
        for other in named.values():
            findings += template_findings(other, path)
        if picked := chosen(named):
            stated[path] = picked
    own = by_path.get(CHAT_TEMPLATE)
    rest = [file for file in files if "/" in file.path or not file.path.endswith(".jinja") or file is own]
    findings += [
        Finding("file-skipped", f"only {CHAT_TEMPLATE} is packed as a template", file.path)
        for file in files
        if file not in rest
    ]
    if own is not None:
        text = _template_text(own)
        findings += template_findings(text, CHAT_TEMPLATE)
        if any(other.strip() != text.strip() for other in stated.values()):
            findings.append(Finding("template-differs", f"differs from the one in {min(stated)}", CHAT_TEMPLATE))
        return text, rest
    if stated:
        text = next(iter(stated.values()))
        return text, [*rest, PackFile.in_memory(CHAT_TEMPLATE, Kind.CONFIG, text.encode())]
    if any(
        str(name).endswith(("ForCausalLM", "ForConditionalGeneration")) for name in config.get("architectures") or []
    ):
        findings.append(Finding("chat-template-missing", f"no {CHAT_TEMPLATE}, and none in tokenizer_config.json"))
    return None, rest


def _template_text(file: PackFile) -> str:
    assert isinstance(file.content, Path)
    if file.size > 4 * MAX_TEMPLATE:
        raise Malformed(f"{file.path}: a chat template of {file.size} bytes")
    try:
        return file.content.read_text("utf-8")
    except UnicodeDecodeError:
        raise Malformed(f"{file.path}: not valid UTF-8") from None


def _config_templates(file: PackFile | None) -> dict[str, str]:
    if file is None:
        return {}
    assert isinstance(file.content, Path)
    return named_templates(_json(file.content, file.path))
