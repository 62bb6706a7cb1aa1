"""Compose files: the models they name, started together, and Docker Compose's own calls answered."""
