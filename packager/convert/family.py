"""What a model family is to the converter: a table of tensors, a list of settings. One module each in `families`.

A rule names a tensor on both sides, with ``{}`` where the layer number goes, and gives its shape by the names of
dimensions; what the file holds must agree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from artifact.errors import Malformed
from packager.convert.checkpoint import Checkpoint, StoredTensor
from packager.convert.documents import Fields
from packager.convert.encoding import Floats
from packager.convert.errors import Unsupported
from packager.convert.gguf_header import Metadata

_READABLE = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class Rule:
    """One tensor, or one of every layer. `shape` names dimensions; `heads` names the dimension (a number of heads)
    whose rows are to be reordered for llama.cpp's rotary pairs; an `optional` tensor may be absent; an `untied` one is
    the output matrix, which a model with tied embeddings does not use."""

    source: str
    target: str
    shape: tuple[str, ...]
    heads: str | None = None
    optional: bool = False
    untied: bool = False


@dataclass(frozen=True)
class Family:
    """How checkpoints of `models` (config.json's ``architectures``) become GGUF of `architecture`.

    `dimensions` gives the numbers that shapes are made of, ``layers`` among them; `describe` writes the
    hyperparameters; `computed` makes tensors that no checkpoint stores. Each raises `Malformed` or `Unsupported`.
    """

    architecture: str
    models: tuple[str, ...]
    rules: tuple[Rule, ...]
    dimensions: Callable[[Fields], dict[str, int]]
    describe: Callable[[Metadata, Fields, Mapping[str, int]], None]
    computed: Callable[[Fields, Mapping[str, int]], dict[str, Floats]]
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True)
class Placement:
    """A stored tensor and what it becomes; `heads` is a count, 0 where rows stay in order."""

    target: str
    stored: StoredTensor
    heads: int = 0


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


def place(family: Family, checkpoint: Checkpoint, dimensions: Mapping[str, int]) -> list[Placement]:
    """Every tensor of the checkpoint under its GGUF name, in the order of the rules, layer by layer, whatever their
    order in the files. Raises `Malformed` for one that is missing, unknown or has another shape, `Unsupported` for a
    type that is not read."""
    left = {name: tensor for name, tensor in checkpoint.tensors.items() if not name.endswith(family.ignored or "\0")}
    placements: list[Placement] = []
    tied = checkpoint.config.flag("tie_word_embeddings", False)
    for rule, number in _instances(family, dimensions["layers"]):
        name = rule.source.format(number)
        stored = left.pop(name, None)
        if rule.untied and tied:
            continue
        if stored is None:
            if rule.optional:
                continue
            raise Malformed(f"{checkpoint.folder} lacks tensor {name!r}, which its config.json calls for")
        _check(stored, tuple(dimensions[dimension] for dimension in rule.shape))
        heads = dimensions[rule.heads] if rule.heads else 0
        placements.append(Placement(rule.target.format(number), stored, heads))
    if left:
        name, stored = min(left.items())
        raise Malformed(f"{stored.path}: tensor {name!r} does not belong to {model_class(checkpoint.config)}")
    return placements


def _instances(family: Family, layers: int) -> list[tuple[Rule, int]]:
    return [(rule, 0) for rule in family.rules if "{}" not in rule.source] + [
        (rule, number) for number in range(layers) for rule in family.rules if "{}" in rule.source
    ]


def _check(stored: StoredTensor, shape: tuple[int, ...]) -> None:
    tensor = stored.tensor
    if tensor.dtype not in _READABLE:
        raise Unsupported(
            f"{stored.path}: tensor {tensor.name!r} has type {tensor.dtype}: only {', '.join(_READABLE)} are converted"
        )
    if tensor.shape != shape:
        raise Malformed(
            f"{stored.path}: tensor {tensor.name!r} has shape {list(tensor.shape)}, config.json makes it {list(shape)}"
        )
