"""What a user states: how a model shall run, by which policy, and where it is."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from artifact.reference import Reference
from artifact.terminal import note
from runner.pull import absolute

if TYPE_CHECKING:
    from supplychain.policy import Policy

POLICY_VARIABLE = "STOWAGE_POLICY"
"""The environment variable that names the policy file where ``--policy`` does not."""
SANDBOX_VARIABLE = "STOWAGE_SANDBOX"
"""The environment variable that says what ``--sandbox`` says, where that is not given."""


@dataclass(frozen=True)
class Wishes:
    """What the user states about running a model, all of it optional. `flags` are the engine's own, as written;
    `sandbox` is ``auto``, ``required`` or ``off``; `lora` are adapters, ``[NAME=]REFERENCE``; `stream` lets the engine
    load while the model still arrives."""

    driver: str | None = None
    context_size: int | None = None
    gpus: str | None = None
    engine_path: Path | None = None
    flags: Sequence[str] = ()
    sandbox: str = "auto"
    lora: Sequence[str] = ()
    stream: bool = False


def stated_sandbox() -> str:
    """The sandbox for commands without ``--sandbox``: what the environment says, else ``auto``."""
    return os.environ.get(SANDBOX_VARIABLE) or Wishes().sandbox


def load_policy(path: Path | None) -> Policy | None:
    """The policy the user states, or the one ``$STOWAGE_POLICY`` names; without one, a warning and None."""
    stated = path or (Path(os.environ[POLICY_VARIABLE]) if os.environ.get(POLICY_VARIABLE) else None)
    if stated is None:
        note("warning: no policy is stated (--policy), so nothing but digests is verified: any signer or none will do")
        return None
    from supplychain.policy import Policy

    return Policy.load(stated)


def parse_references(texts: Sequence[str]) -> list[Reference]:
    """References as users write them, layouts made absolute. Raises `InvalidInput`."""
    return [absolute(Reference.parse(text)) for text in texts]
