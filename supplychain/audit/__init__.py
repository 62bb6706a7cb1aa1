"""Auditing: what is kept in registries, who signed it, and what a policy makes of it."""
