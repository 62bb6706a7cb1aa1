"""``registry.toml``: one file that says how the registry is to be run. `read.load` reads it."""
