"""Copying repositories from one place to another: registries of any make, and OCI layouts."""
