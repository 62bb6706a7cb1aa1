"""Checkpoints into GGUF: Hugging Face folders of known families to F32, F16, BF16 and Q8_0.

`convert` reads a folder's headers and documents, refuses what it cannot carry over exactly, and then streams tensor
by tensor: memory stays flat, and the same input gives the same bytes on every machine. A family is one module in
`families`, declaring its tensors and settings.
"""

from __future__ import annotations

from packager.convert.conversion import PRECISIONS, Conversion, convert, plan_conversion
from packager.convert.errors import Unsupported
from packager.convert.plan import Plan

__all__ = ["PRECISIONS", "Conversion", "Plan", "Unsupported", "convert", "plan_conversion"]
