"""Keeps artifacts: an OCI distribution server whose only state is one object store, a folder or an S3 bucket."""
