"""Engines: what runs a model, each behind the same small interface. No engine is ever imported into this process."""

from runner.engines.engine import Command, Engine, Options

__all__ = ["Command", "Engine", "Options"]
