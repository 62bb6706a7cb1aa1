"""Precision as a contract: computed from the bytes, written into tags, checked wherever a tag is believed.

The label of a set of weight files is the tensor type that holds most of their parameters. A GGUF file type that is a
recipe rather than a type (``Q4_K_M``) is used as the label only if the type it is a recipe for really dominates.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from artifact.errors import Malformed
from artifact.weights.tensor import Tensor, WeightFile

GGUF_FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S",
    12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS",
    20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M",
    28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4",
    39: "NVFP4", 40: "Q1_0", 41: "Q2_0",
}  # fmt: skip
"""`general.file_type` to the name of the recipe (llama.cpp, enum llama_ftype)."""

_RECIPE_TYPES = {
    "IQ3_XS": "IQ3_S",
    "IQ3_M": "IQ3_S",
    "IQ2_S": "IQ2_XS",
    "IQ2_M": "IQ2_S",
    "MXFP4_MOE": "MXFP4",
}
_WORDS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}

_LABEL = re.compile(
    r"B?F(?:16|32|64)|F8_E4M3|F8_E5M2|I?Q[0-9]_(?:K(?:_(?:S|M|L|XL))?|[0-9]|XXS|XS|S|M|NL)|TQ[12]_0|(?:MX|NV)FP4",
    re.IGNORECASE,
)
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)([KMBT])", re.IGNORECASE)
_ALIASES = {"FP16": "F16", "FP32": "F32", "FP64": "F64"}
_UNITS = {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_SIZE_TOLERANCE = 1.25
"""How far a tag's model size may be from the parameter count: names in the field round, and leave embeddings out."""


@dataclass(frozen=True)
class Facts:
    """What the bytes of an artifact's weight files say. `parameters` is the number of elements of all tensors;
    `shares` the fraction of them held by each tensor type, largest first."""

    format: str
    precision: str
    parameters: int
    shares: tuple[tuple[str, float], ...]

    @property
    def tag(self) -> str:
        """The canonical tag, e.g. ``4B-BF16-safetensors`` or ``4B-Q4_K_M``."""
        return canonical_tag(self.format, self.precision, self.parameters)


def facts_of(files: Sequence[WeightFile]) -> Facts:
    """Read the facts from the headers of all weight files of a model. Raises `Malformed` on a mix of formats, on no
    tensors at all, and on a tensor that two files both hold."""
    formats = {file.format for file in files}
    if len(formats) != 1:
        raise Malformed("no weight files" if not formats else f"weight files of several formats: {sorted(formats)}")
    names: set[str] = set()
    for file in files:
        for tensor in file.tensors:
            if tensor.name in names:
                raise Malformed(f"tensor {tensor.name!r} is in two weight files")
            names.add(tensor.name)
    tensors = [tensor for file in files for tensor in file.tensors]
    shares = shares_of(tensors)
    if not shares:
        raise Malformed("the weight files hold no tensors")
    label = shares[0][0]
    if formats == {"gguf"}:
        recipe = GGUF_FILE_TYPES.get(_file_type(files[0]))
        if recipe is not None and _recipe_type(recipe) == label:
            label = recipe
    return Facts(formats.pop(), label, sum(tensor.elements for tensor in tensors), shares)


def shares_of(tensors: Iterable[Tensor]) -> tuple[tuple[str, float], ...]:
    """Each tensor type's share of all elements, largest first, ties by name."""
    counts: dict[str, int] = {}
    for tensor in tensors:
        counts[tensor.dtype] = counts.get(tensor.dtype, 0) + tensor.elements
    total = sum(counts.values())
    if not total:
        return ()
    return tuple((name, count / total) for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def precision_word(precision: str) -> str | None:
    """The ModelPack config's word for a floating-point precision (``float16``); None for a quantised one."""
    return _WORDS.get(precision)


def size_label(parameters: int) -> str:
    """A parameter count as people write it: two significant digits at least, e.g. 135M, 1.7B, 4B, 235B."""
    for unit in ("T", "B", "M", "K"):
        if parameters >= _UNITS[unit] * 0.9995:
            value = parameters / _UNITS[unit]
            text = f"{value:.1f}" if value < 9.95 else f"{value:.0f}"
            return text.removesuffix(".0") + unit
    return f"{max(parameters, 1) / 1000:g}K"


def canonical_tag(format_: str, precision: str, parameters: int) -> str:
    """The tag that states format, precision and size."""
    return f"{size_label(parameters)}-{precision}" + ("-safetensors" if format_ == "safetensors" else "")


def disagreement(tag: str, facts: Facts) -> str | None:
    """What a tag claims that the bytes do not hold, in a sentence; None if they agree or the tag claims nothing.

    A tag claims with those of its dash-separated words that are a precision, a format, or (the first word) a size.
    A bare ``SIZE-PRECISION`` is the canonical form of a GGUF model and so claims that format; ``latest`` and ``v1``
    claim nothing.
    """
    words = tag.split("-")
    labels = [word for word in words if _LABEL.fullmatch(_ALIASES.get(word.upper(), word))]
    formats = {word.lower() for word in words} & {"gguf", "safetensors"}
    size = _SIZE.fullmatch(words[0])
    if labels and not formats and len(words) == len(labels) + (size is not None):
        formats = {"gguf"}
    if formats and formats != {facts.format}:
        return f"tag {tag!r} says {min(formats)}, the files are {facts.format}: the tag would be {facts.tag!r}"
    for label in labels:
        if _ALIASES.get(label.upper(), label.upper()) != facts.precision.upper():
            held = ", ".join(f"{name} {share:.0%}" for name, share in facts.shares[:3])
            return f"tag {tag!r} says {label}, the bytes are {facts.precision} ({held}): the tag would be {facts.tag!r}"
    if size and facts.parameters and (labels or formats):
        stated = float(size[1]) * _UNITS[size[2].upper()]
        if not 1 / _SIZE_TOLERANCE <= stated / facts.parameters <= _SIZE_TOLERANCE:
            held = f"the files hold {facts.parameters:,} parameters"
            return f"tag {tag!r} says {size[0]}, {held}: the tag would be {facts.tag!r}"
    return None


def is_precision_tag(tag: str) -> bool:
    """Whether a tag has the canonical form that states size and precision: ``4B-Q4_K_M``, ``4B-BF16-safetensors``."""
    size, _, rest = tag.partition("-")
    label = rest.removesuffix("-safetensors")
    return bool(_SIZE.fullmatch(size)) and bool(_LABEL.fullmatch(_ALIASES.get(label.upper(), label)))


def _file_type(file: WeightFile) -> int:
    value = file.metadata.get("general.file_type")
    return value if isinstance(value, int) else -1


def _recipe_type(recipe: str) -> str:
    return _RECIPE_TYPES.get(recipe) or re.sub(r"(?<=_K)_[SML]$", "", recipe)
