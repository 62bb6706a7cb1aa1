"""Copies of other registries' repositories, made as they are asked for."""
