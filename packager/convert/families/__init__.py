"""The families that are converted, one module each."""

from __future__ import annotations

from packager.convert.families.llama import LLAMA
from packager.convert.family import Family

FAMILIES: tuple[Family, ...] = (LLAMA,)
