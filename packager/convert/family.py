"""What a model family is to the converter: a table of tensors, a list of settings. One module each in `families`.

A rule names a tensor on both sides, with ``{}`` where the layer number goes, and gives its shape by the names of
dimensions; what the files hold must agree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from artifact.errors import Malformed
from packager.convert.checkpoint import Checkpoint, StoredTensor
from packager.convert.documents import Fields
from packager.convert.encoding import Floats
from packager.convert.errors import Unsupported
from packager.convert.gguf_header import Metadata

Dimensions = Mapping[str, int]

_READABLE = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class Rule:
    """One tensor, or one of every layer. `shape` names dimensions of the stored tensor.

    `heads` names the dimension (a number of heads) whose rows are to be reordered for llama.cpp's rotary pairs;
    `each` names the number of tensors, counted by a second ``{}`` in `source`, that are stacked into one; `plus_one`
    is for norms stored as their distance from one, `transposed` for matrices stored as inputs by outputs. An
    `optional` tensor may be absent, one with `when` must be there if that dimension is not zero, and may not be
    otherwise; an `untied` one is the output matrix, which a model with tied embeddings does not use.
    """

    source: str
    target: str
    shape: tuple[str, ...]
    heads: str | None = None
    each: str | None = None
    plus_one: bool = False
    transposed: bool = False
    optional: bool = False
    when: str | None = None
    untied: bool = False


def _nothing(config: Fields, dimensions: Dimensions) -> dict[str, Floats]:
    return {}


@dataclass(frozen=True)
class Family:
    """How checkpoints of `models` (config.json's ``architectures``) become GGUF of `architecture`.

    `dimensions` gives the numbers that shapes are made of, ``layers`` among them; `describe` writes the
    hyperparameters; `computed` makes tensors that no checkpoint stores. Each raises `Malformed` or `Unsupported`.
    `renamed` gives the name under which the rules know a stored tensor; names that match a pattern of `ignored` are
    passed over. `tied` is whether the output matrix is the embedding where config.json does not say; `pooled` families
    may be embedding models.
    """

    architecture: str
    models: tuple[str, ...]
    rules: tuple[Rule, ...]
    dimensions: Callable[[Fields], dict[str, int]]
    describe: Callable[[Metadata, Fields, Dimensions], None]
    computed: Callable[[Fields, Dimensions], dict[str, Floats]] = _nothing
    renamed: Callable[[str], str] = str
    ignored: tuple[str, ...] = ("*.rotary_emb.inv_freq", "*.attention.masked_bias", "*.attention.bias")
    tied: bool = False
    pooled: bool = False


@dataclass(frozen=True)
class Placement:
    """What becomes of the tensors in `parts`, all of one shape: one tensor `target`, its parts in order. `heads` is
    a count, 0 where rows stay in order."""

    target: str
    parts: tuple[StoredTensor, ...]
    shape: tuple[int, ...]
    heads: int = 0
    plus_one: bool = False
    transposed: bool = False


def model_class(config: Fields) -> str:
    """config.json's own name for the model, ``LlamaForCausalLM``. Raises `Malformed` if it states none."""
    names = config.items("architectures")
    if not names or not isinstance(names[0], str):
        raise Malformed(f"{config.where} has no architectures: it does not say what model this is")
    return names[0]


def family_of(config: Fields, families: tuple[Family, ...]) -> Family:
    """The family a config belongs to. Raises `Unsupported`, naming those there are."""
    name = model_class(config)
    for family in families:
        if name in family.models:
            return family
    known = ", ".join(sorted(model for family in families for model in family.models))
    raise Unsupported(
        f"architecture {name!r:.80} cannot be converted to GGUF (can be: {known}): pack it as safetensors instead"
    )


def place(family: Family, checkpoint: Checkpoint, dimensions: Dimensions, *, headless: bool = False) -> list[Placement]:
    """Every tensor of the checkpoint under its GGUF name, in the order in which their bytes lie in the files, so that a
    conversion reads each file from front to back. A `headless` model may lack the output matrix: nobody asks it for a
    next token. Raises `Malformed` for one that is missing, unknown or has another
    shape, `Unsupported` for a type that is not read."""
    left = _known(family, checkpoint)
    placements: list[Placement] = []
    tied = checkpoint.config.flag("tie_word_embeddings", family.tied)
    for rule, layer in _instances(family, dimensions):
        names = _sources(rule, layer, dimensions)
        found = [left.pop(name) for name in names if name in left]
        if (rule.untied and (tied or (headless and not found))) or (rule.optional and not found):
            continue
        if len(found) != len(names):
            missing = next(name for name in names if name not in checkpoint.tensors)
            raise Malformed(f"{checkpoint.folder} lacks tensor {missing!r}, which its config.json calls for")
        placements.append(_placement(rule, rule.target.format(layer), tuple(found), dimensions))
    if left:
        name, stored = min(left.items())
        raise Malformed(f"{stored.path}: tensor {name!r} does not belong to {model_class(checkpoint.config)}")
    return sorted(placements, key=lambda placement: min((part.path, part.tensor.offset) for part in placement.parts))


def _known(family: Family, checkpoint: Checkpoint) -> dict[str, StoredTensor]:
    known: dict[str, StoredTensor] = {}
    for stored_name, stored in checkpoint.tensors.items():
        name = family.renamed(stored_name)
        if any(fnmatchcase(name, pattern) for pattern in family.ignored):
            continue
        if name in known:
            raise Malformed(f"{stored.path}: tensor {stored_name!r} is there under another name as well")
        known[name] = stored
    return known


def _instances(family: Family, dimensions: Dimensions) -> list[tuple[Rule, int]]:
    rules = [rule for rule in family.rules if rule.when is None or dimensions[rule.when]]
    return [(rule, 0) for rule in rules if "{}" not in rule.source] + [
        (rule, number) for number in range(dimensions["layers"]) for rule in rules if "{}" in rule.source
    ]


def _sources(rule: Rule, layer: int, dimensions: Dimensions) -> list[str]:
    if rule.each is None:
        return [rule.source.format(layer)]
    return [rule.source.format(layer, number) for number in range(dimensions[rule.each])]


def _placement(rule: Rule, target: str, parts: tuple[StoredTensor, ...], dimensions: Dimensions) -> Placement:
    shape = tuple(dimensions[dimension] for dimension in rule.shape)
    for part in parts:
        _check(part, shape, parts[0].tensor.dtype)
    result = tuple(reversed(shape)) if rule.transposed else shape
    return Placement(
        target,
        parts,
        result if rule.each is None else (len(parts), *result),
        heads=dimensions[rule.heads] if rule.heads else 0,
        plus_one=rule.plus_one,
        transposed=rule.transposed,
    )


def _check(stored: StoredTensor, shape: tuple[int, ...], dtype: str) -> None:
    tensor = stored.tensor
    if tensor.dtype not in _READABLE:
        raise Unsupported(
            f"{stored.path}: tensor {tensor.name!r} has type {tensor.dtype}: only {', '.join(_READABLE)} are converted"
        )
    if tensor.dtype != dtype:
        raise Unsupported(f"{stored.path}: tensor {tensor.name!r} has type {tensor.dtype}, its siblings {dtype}")
    if tensor.shape != shape:
        raise Malformed(
            f"{stored.path}: tensor {tensor.name!r} has shape {list(tensor.shape)}, config.json makes it {list(shape)}"
        )
