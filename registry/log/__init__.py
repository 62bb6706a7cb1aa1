"""The transparency log of a registry: everything that happens to its tags and manifests, in an order that cannot be
rewritten unseen. docs/transparency.md says why it can be trusted, and how far."""
