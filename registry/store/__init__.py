"""The object store under the registry: one protocol, a folder driver and an S3 driver."""
