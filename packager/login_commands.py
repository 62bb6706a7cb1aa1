"""``packager login`` and ``logout``: the registries' passwords, where Docker keeps them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from artifact.errors import InvalidInput, Unauthorized
from artifact.reference import is_host
from artifact.remote.credentials import Credentials
from artifact.remote.transport import Transport
from artifact.terminal import note
from packager.options import PlainHttpOption
from packager.prompt import prompt

login_app = typer.Typer()


@login_app.command("login")
def login_command(
    host: Annotated[str, typer.Argument(metavar="HOST", help="The registry: HOST[:PORT].")],
    username: Annotated[str | None, typer.Option("--username", "-u", help="User name; else a prompt.")] = None,
    password_stdin: Annotated[
        bool, typer.Option("--password-stdin", help="Read the password from standard input.")
    ] = False,
    plain_http: PlainHttpOption = False,
) -> None:
    """Try a login at a registry and keep it in Docker's config.json or the credential helper it names.

    Example: packager login registry.example.com -u ci --password-stdin < token
    """
    _check_host(host)
    if password_stdin:
        if not username:
            raise InvalidInput("--password-stdin needs --username")
        password = sys.stdin.readline().rstrip("\r\n")
    else:
        username = username or prompt("Username")
        password = prompt("Password", hidden=True)
    if not username or not password:
        raise InvalidInput("a login needs a user name and a password")
    tried = Credentials(Path(), {"auths": {host: {"username": username, "password": password}}})
    transport = Transport(host, plain_http=plain_http, credentials=tried)
    try:
        transport.request("GET", "/v2/", scope="", expect=(200, 404), what="/v2/")
    except Unauthorized as error:  # whose advice to log in is what was just tried
        raise Unauthorized(str(error).removesuffix(f": packager login {host}")) from None
    note(f"login for {host} kept in {Credentials.load().store(host, username, password)}")


@login_app.command("logout")
def logout_command(host: Annotated[str, typer.Argument(metavar="HOST", help="The registry: HOST[:PORT].")]) -> None:
    """Forget the login for a registry.

    Example: packager logout registry.example.com
    """
    _check_host(host)
    note(f"login for {host} {'removed' if Credentials.load().erase(host) else 'was not there'}")


def _check_host(host: str) -> None:
    if not is_host(host):
        raise InvalidInput(f"not a registry host: {host[:80]!r} (want HOST or HOST:PORT, without https://)")
