"""The endpoint clients talk to: one process, many models, three dialects; each request goes to its model's engine."""

DIGEST_HEADER = "Stowage-Digest"
"""The response header that names the manifest digest of the model that answered."""
