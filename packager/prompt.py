"""What a person is asked for: passwords and names, from the terminal or the environment."""

from __future__ import annotations

import os
import sys

import typer

from artifact.errors import InvalidInput


def key_password(*, confirm: bool = False) -> bytes:
    """The password of a private key: ``COSIGN_PASSWORD``, else a prompt. Raises `InvalidInput` without a terminal."""
    stated = os.environ.get("COSIGN_PASSWORD")
    if stated is not None:
        return os.fsencode(stated)
    if not sys.stdin.isatty():
        raise InvalidInput("the key needs a password: set COSIGN_PASSWORD (it may be empty)")
    return prompt("Password for the private key", hidden=True, confirm=confirm).encode()


def prompt(text: str, *, hidden: bool = False, confirm: bool = False) -> str:
    """What a person answers to `text`. Raises `InvalidInput` if standard input is no terminal."""
    if not sys.stdin.isatty():
        raise InvalidInput(f"{text.lower()} wanted, but standard input is no terminal (--username, --password-stdin)")
    default = "" if hidden else None
    answer: str = typer.prompt(
        text, hide_input=hidden, confirmation_prompt=confirm, err=True, default=default, show_default=False
    )
    return answer
