"""Whole models pulled and pushed by us and by others, in turn."""
