"""The version of the distribution, and the name it gives itself on the wire."""

__version__ = "0.1.0"

PRODUCT = "stowage"
"""The distribution's name."""

USER_AGENT = f"{PRODUCT}/{__version__}"
"""Value of the ``User-Agent`` header of every request, or the beginning of it."""
