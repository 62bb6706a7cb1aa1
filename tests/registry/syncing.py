"""``registry sync``, called in this process."""

from __future__ import annotations

import json
from typing import Any

from typer.testing import CliRunner

from registry.cli import app


def sync(*arguments: str, status: int = 0) -> dict[str, Any]:
    """The report of a run, which ends with `status`."""
    done = CliRunner().invoke(app, ["sync", *arguments, "--json"])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == status, done.output
    return json.loads(done.stdout)
