"""The mixtures of tensor types llama.cpp quantises to, by the name a user gives.

Source: llama.cpp, include/llama.h (enum llama_ftype), src/llama-quant.cpp (which of them need an importance matrix).
"""

from __future__ import annotations

from dataclasses import dataclass

from artifact.errors import InvalidInput
from artifact.weights.precision import GGUF_FILE_TYPES

_ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M", "MXFP4_MOE": "MXFP4"}
_NEED_MATRIX = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS", "Q2_K_S")
_USE_NO_MATRIX = ("F32", "F16", "BF16", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4", "Q1_0", "Q2_0")
_NOT_MADE = ("NVFP4",)


@dataclass(frozen=True)
class Recipe:
    """One mixture. `number` is llama.cpp's for the file type; `needs_imatrix` says that it refuses to go on without an
    importance matrix, `uses_imatrix` that one makes a difference."""

    name: str
    number: int
    needs_imatrix: bool
    uses_imatrix: bool


RECIPES = {
    name: Recipe(name, number, name in _NEED_MATRIX, name not in _USE_NO_MATRIX)
    for number, name in GGUF_FILE_TYPES.items()
    if name not in _NOT_MADE
}
"""Every mixture, by name. The floats among them are for files that are GGUF already."""


def canonical(precision: str) -> str:
    """The name that a mixture with several names goes by, in capitals; any other name in capitals."""
    upper = precision.upper()
    return _ALIASES.get(upper, upper)


def recipe_of(precision: str) -> Recipe:
    """The mixture of a name, in capitals or not. Raises `InvalidInput`, naming those there are."""
    recipe = RECIPES.get(canonical(precision))
    if recipe is None:
        raise InvalidInput(f"--precision {precision[:40]}: no such type (there are {', '.join(sorted(RECIPES))})")
    return recipe
