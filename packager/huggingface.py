"""A checkpoint that is a Hugging Face folder: config.json, safetensors with or without an index, tokenizer files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from artifact.errors import Malformed, NotFound
from artifact.filepath import checked_paths
from artifact.filetypes import is_pickle_name
from artifact.weights import safetensors
from artifact.weights.precision import facts_of
from artifact.weights.shards import INDEX, MAX_INDEX, SINGLE, misplaced, weight_map
from artifact.weights.tensor import WeightFile
from packager.checkpoint import CHAT_TEMPLATE, Checkpoint, PackFile, in_order
from packager.content import Content, InMemory, head, read
from packager.description import from_checkpoint
from packager.files import PICKLE_MAGIC, Kind, is_license, kind_of, shards_of
from packager.findings import Finding
from packager.jsonfile import load_lenient
from packager.template import MAX_TEMPLATE, chosen, named_templates, template_findings

_MAX_JSON = 32 * 1024 * 1024
_MAX_README = 1024 * 1024
_PLAIN_JSON = ("tokenizer.json", "vocab.json", "added_tokens.json", "modules.json", INDEX)
"""JSON files in which no engine looks for code; the first ones can be large, the next to last is a list."""
_TEMPLATE_CONFIGS = ("chat_template.json", "tokenizer_config.json")
_NO_LIMIT = 10**9
"""A model_max_length from here on means none was set."""
_GENERATES = ("ForCausalLM", "ForConditionalGeneration")
_CODE_KEYS = ("auto_map", "custom_pipelines")
_TOKENIZERS = ({"tokenizer.json"}, {"tokenizer.model"}, {"vocab.json", "merges.txt"}, {"vocab.txt"}, {"tekken.json"})


def open_files(place: str, listed: Mapping[str, Content], findings: list[Finding]) -> Checkpoint:
    """Open the checkpoint that the files `listed` make; `place` names it in messages, `findings` are those so far.

    Reads configurations and headers, not tensors. Raises `NotFound` if it is no checkpoint or lacks a shard,
    `Malformed` on what cannot be a sound checkpoint. What is merely unsafe or missing is in its findings.
    """
    config = _config(place, listed)
    findings += [pickle_finding(path) for path in listed if is_pickle_name(path)]
    weights = _weights(place, listed, findings)
    files = []
    for path, content in listed.items():
        kind = kind_of(path)
        if kind is Kind.WEIGHT and path not in weights:
            if "/" in path:
                raise Malformed(f"{place}/{path}: a module with weights of its own cannot be packed yet")
            kind = None
        if kind is not None:
            files.append(PackFile(path, kind, content))
        elif not is_pickle_name(path):
            findings.append(Finding("file-skipped", "not a file of the model that is loaded, not packed", path))
    description = from_checkpoint(config, readme_of(listed))
    findings += content_findings(files)
    findings += _tokenizer_findings(files)
    if not description.licenses and not any(is_license(file.path) for file in files):
        findings.append(Finding("license-missing", "no licence file, and the model card states none"))
    findings += _context_findings(description.context_length, listed)
    template, files = _chat_template(files, config, findings)
    checked_paths([file.path for file in files])
    headers = tuple(weights.values())
    return Checkpoint(place, in_order(files), headers, facts_of(headers), description, template, tuple(findings))


def _config(place: str, listed: Mapping[str, Content]) -> dict[str, Any]:
    config = read_json(listed["config.json"], f"{place}/config.json")
    quantization = config.get("quantization")
    if isinstance(quantization, dict) and "group_size" in quantization and "bits" in quantization:
        raise Malformed(f"{place}: quantised for MLX, which neither vLLM nor llama.cpp loads; pack the original")
    return config


def read_json(content: Content, what: str) -> dict[str, Any]:
    """A JSON object among the files; `what` names it in errors. Raises `Malformed`."""
    return load_lenient(read(content, _MAX_JSON, what), what, _MAX_JSON)


def _weights(place: str, listed: Mapping[str, Content], findings: list[Finding]) -> dict[str, WeightFile]:
    """The headers of the weight files the model is loaded from, by path. Others are no part of it."""
    if INDEX in listed:
        return _indexed(place, listed, findings)
    # In the order of the layers of an artifact, whatever order another tool's artifact lists them in.
    names = sorted(name for name in listed if name.endswith(".safetensors") and "/" not in name)
    if SINGLE in names:
        names = [SINGLE]
    if not names:
        pickles = next((name for name in listed if is_pickle_name(name)), None)
        told = f"only pickles ({pickles}), which run code when loaded and are never packed" if pickles else "no weights"
        raise NotFound(f"{place}: {told}; want *.safetensors")
    for name in names:
        _check_set(place, name, listed)
    return {name: header_of(place, name, listed[name]) for name in names}


def _check_set(place: str, name: str, listed: Mapping[str, Content]) -> None:
    for shard in shards_of(name) or ():
        if shard not in listed:
            raise NotFound(f"{place}: shard {shard} is missing")


def _indexed(place: str, listed: Mapping[str, Content], findings: list[Finding]) -> dict[str, WeightFile]:
    what = f"{place}/{INDEX}"
    mapping = weight_map(read(listed[INDEX], MAX_INDEX, what), what)
    weights: dict[str, WeightFile] = {}
    for name in sorted(set(mapping.values())):
        if name not in listed:
            raise NotFound(f"{place}: shard {name} is missing; {INDEX} names it")
        weights[name] = header_of(place, name, listed[name])
    held = {name: {tensor.name for tensor in file.tensors} for name, file in weights.items()}
    if wrong := misplaced(mapping, held):
        raise Malformed(f"{place}/{wrong[1]}: no tensor {wrong[0][:120]!r}, which {INDEX} says is there")
    for name, tensors in held.items():
        extra = sorted(tensor for tensor in tensors if mapping.get(tensor) != name)
        if extra:
            findings.append(
                Finding("index-incomplete", f"{len(extra)} tensors not in the index, as {extra[0]!r}", name)
            )
    return weights


def header_of(place: str, name: str, content: Content) -> WeightFile:
    """The header of a safetensors file of the checkpoint. Raises `Malformed`."""
    return safetensors.read_source(content.source, content.size, f"{place}/{name}")


def readme_of(listed: Mapping[str, Content]) -> str:
    """The model card; empty if there is none, or one too large to be a text."""
    content = listed.get("README.md")
    if content is None or content.size > _MAX_README:
        return ""
    return read(content, _MAX_README, "README.md").decode("utf-8", "replace")


def content_findings(files: list[PackFile]) -> Iterator[Finding]:
    """What in the packed files is dangerous."""
    for file in files:
        if file.kind is Kind.CODE:
            yield Finding("python-code", "Python source is not packed by default: an engine may run it", file.path)
        if file.kind is not Kind.WEIGHT and PICKLE_MAGIC.match(head(file.content, 2)):
            yield pickle_finding(file.path)
        if file.path.endswith(".json") and file.path.rpartition("/")[2] not in _PLAIN_JSON:
            yield from _code_references(file.path, file.content)


def _tokenizer_findings(files: list[PackFile]) -> Iterator[Finding]:
    paths = {file.path for file in files}
    if not any(files_ <= paths for files_ in _TOKENIZERS) and not any(path.endswith(".tiktoken") for path in paths):
        yield Finding("tokenizer-missing", "no tokenizer.json, tokenizer.model or vocabulary")


def _context_findings(context: int | None, listed: Mapping[str, Content]) -> Iterator[Finding]:
    content = listed.get("tokenizer_config.json")
    if content is None or context is None:
        return
    longest = read_json(content, "tokenizer_config.json").get("model_max_length")
    if type(longest) is int and context < longest < _NO_LIMIT:
        told = f"model_max_length is {longest}, the model's context {context}"
        yield Finding("context-length", told, "tokenizer_config.json")


def pickle_finding(path: str) -> Finding:
    """The finding that a file is a pickle."""
    return Finding("pickle", f"a pickle runs code when it is loaded; leave it out with --file-filter '!{path}'", path)


def _code_references(path: str, content: Content) -> Iterator[Finding]:
    # Wrapped, because a file that is a list is read like one that is an object.
    raw = b'{"document":%b}' % read(content, _MAX_JSON, path)
    pending: list[Any] = [load_lenient(raw, path, 2 * _MAX_JSON)]
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
        return text, [*rest, PackFile(CHAT_TEMPLATE, Kind.CONFIG, InMemory(text.encode()))]
    names = config.get("architectures")
    if isinstance(names, list) and any(str(name).endswith(_GENERATES) for name in names):
        findings.append(Finding("chat-template-missing", f"no {CHAT_TEMPLATE}, and none in tokenizer_config.json"))
    return None, rest


def _template_text(file: PackFile) -> str:
    try:
        return read(file.content, 4 * MAX_TEMPLATE, file.path).decode()
    except UnicodeDecodeError:
        raise Malformed(f"{file.path}: not valid UTF-8") from None


def _config_templates(file: PackFile | None) -> dict[str, str]:
    return named_templates(read_json(file.content, file.path)) if file is not None else {}
