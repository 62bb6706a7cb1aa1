"""What a conversion refuses that is no damage, only beyond it."""

from __future__ import annotations

from artifact.errors import InvalidInput


class Unsupported(InvalidInput):
    """The checkpoint is sound, but holds something the converter does not know how to carry over."""

    code = "unsupported"
