"""The version of the distribution, and the name it gives itself on the wire."""

__version__ = "0.1.0"

USER_AGENT = f"stowage/{__version__}"
"""Value of the ``User-Agent`` header of every request."""
