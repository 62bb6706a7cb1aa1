"""What is measured against whom. Nothing here passes or fails: `make bench` writes what it saw to ``results/``."""
