"""``registry user``: people in an htpasswd file, robots in the object store."""

from __future__ import annotations

import getpass
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from artifact.errors import InvalidInput
from artifact.terminal import note, print_json
from registry.access import htpasswd
from registry.access.passwords import MAX_PASSWORD, hash_password
from registry.access.rights import Grant, Right
from registry.access.robots import Robot, Robots
from registry.config.access import repository_patterns
from registry.config.document import Node, parse_duration
from registry.config.read import load
from registry.config.sections import Config
from registry.store.open import open_store

users = typer.Typer(
    name="user",
    help="Who can log in: people (htpasswd) and robots.",
    epilog="Example: registry user add alice --htpasswd htpasswd",
    no_args_is_help=True,
)
user_app = typer.Typer()
user_app.add_typer(users)

_CONFIG_HELP = "registry.toml, which names the htpasswd file and the storage."
_ConfigFile = Annotated[Path | None, typer.Option("--config", metavar="registry.toml", help=_CONFIG_HELP)]
_Htpasswd = Annotated[Path | None, typer.Option("--htpasswd", metavar="FILE", help="The file people are in.")]
_Storage = Annotated[
    str | None, typer.Option("--storage", metavar="DIR|s3://BUCKET[/PREFIX]", help="The storage robots are in.")
]
_IsRobot = Annotated[bool, typer.Option("--robot", help="A robot: for a program, for a time.")]
_MAX_LIFETIME = 10 * 365 * 86400
_DEFAULT_EXPIRY = "90d"


@users.command(
    epilog="Example: registry user add alice --htpasswd /etc/stowage/htpasswd; "
    "registry user add ci --robot --expires 30d --rights 'team/**:pull,push'"
)
def add(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    htpasswd_file: _Htpasswd = None,
    storage: _Storage = None,
    config_file: _ConfigFile = None,
    robot: _IsRobot = False,
    expires: Annotated[
        str | None, typer.Option(metavar="30d", help=f"When the robot ends. Default: {_DEFAULT_EXPIRY}")
    ] = None,
    rights: Annotated[
        list[str] | None,
        typer.Option(
            metavar="REPOSITORIES:RIGHTS", help="What the robot may do, beside access rules about robot+NAME."
        ),
    ] = None,
    password_stdin: Annotated[
        bool, typer.Option("--password-stdin", help="Read the password from standard input.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Add a user or a robot, or give a user another password. A robot's secret is printed once and kept nowhere."""
    config = _config(config_file)
    if not robot:
        if expires is not None or rights or storage is not None:
            raise InvalidInput("--expires, --rights and --storage are for robots: add --robot, or use [[access]] rules")
        path = _htpasswd_path(htpasswd_file, config)
        htpasswd.checked_user(name)
        new = htpasswd.add(path, name, hash_password(_password(name, password_stdin)))
        _say(as_json, {"user": name, "file": str(path)}, f"{'added' if new else 'changed'} {name} in {path}")
        return
    if password_stdin:
        raise InvalidInput("a robot's secret is made for it: leave --password-stdin out")
    grants = [_grant(text) for text in rights or ()]
    made, secret = _robots(storage, config).add(name, _lifetime(expires or _DEFAULT_EXPIRY), grants)
    note(f"user {made.principal}, until {_date(made.expires)}; its secret, shown this once:")
    _say(as_json, {**_described(made), "secret": secret}, secret)


@users.command(epilog="Example: registry user remove ci --robot --storage /srv/registry")
def remove(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    htpasswd_file: _Htpasswd = None,
    storage: _Storage = None,
    config_file: _ConfigFile = None,
    robot: _IsRobot = False,
) -> None:
    """Remove a user or a robot. Running servers let it in no more after some seconds."""
    config = _config(config_file)
    if robot:
        _robots(storage, config).remove(name)
    else:
        htpasswd.remove(_htpasswd_path(htpasswd_file, config), name)
    typer.echo(f"removed {name}")


@users.command("list", epilog="Example: registry user list --config registry.toml")
def list_users(
    htpasswd_file: _Htpasswd = None,
    storage: _Storage = None,
    config_file: _ConfigFile = None,
    robot: _IsRobot = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """List the users of the htpasswd file, or with --robot the robots and when they end."""
    config = _config(config_file)
    if robot:
        robots = _robots(storage, config).list()
        if as_json:
            print_json([_described(item) for item in robots])
        for item in [] if as_json else robots:
            ended = " (expired)" if item.expired(time.time()) else ""
            typer.echo(f"{item.principal}  until {_date(item.expires)}{ended}  {' '.join(map(_shown, item.grants))}")
        return
    names = sorted(htpasswd.read(_htpasswd_path(htpasswd_file, config)))
    if as_json:
        print_json([{"user": name} for name in names])
    for name in [] if as_json else names:
        typer.echo(name)


def _config(path: Path | None) -> Config:
    return load(path) if path is not None else Config()


def _htpasswd_path(given: Path | None, config: Config) -> Path:
    path = given or config.auth.htpasswd
    if path is None:
        raise InvalidInput("which htpasswd file? Name it with --htpasswd FILE, or --config registry.toml")
    return path


def _robots(storage: str | None, config: Config) -> Robots:
    return Robots(open_store(storage or config.server.storage, create=False))


def _password(name: str, from_stdin: bool) -> str:
    if from_stdin:
        return sys.stdin.readline(4 * MAX_PASSWORD).rstrip("\r\n")
    if not sys.stdin.isatty():
        raise InvalidInput("there is no terminal to ask for the password: use --password-stdin")
    password = getpass.getpass(f"Password of {name}: ")
    if getpass.getpass("Again: ") != password:
        raise InvalidInput("the two passwords differ")
    return password


def _grant(text: str) -> Grant:
    repositories, colon, rights = text.rpartition(":")
    known = [right.value for right in Right]
    if not colon or not rights or any(right not in known for right in rights.split(",")):
        raise InvalidInput(f"--rights {text[:100]!r}: want REPOSITORIES:RIGHTS, for example team/**:pull,push")
    patterns = repository_patterns(Node(repositories.split(","), ("rights",), "--rights", {(): 1}))
    return Grant(patterns, frozenset(map(Right, rights.split(","))))


def _lifetime(text: str) -> int:
    seconds = parse_duration(text)
    if seconds is None or seconds > _MAX_LIFETIME:
        raise InvalidInput(f"--expires {text[:40]!r}: want a length of time such as 12h or 30d, at most ten years")
    return seconds


def _described(robot: Robot) -> dict[str, Any]:
    return {
        "robot": robot.principal,
        "created": _date(robot.created),
        "expires": _date(robot.expires),
        "expired": robot.expired(time.time()),
        "grants": [{"repositories": list(g.repositories), "rights": sorted(g.rights)} for g in robot.grants],
    }


def _shown(grant: Grant) -> str:
    return f"{','.join(grant.repositories)}:{','.join(sorted(grant.rights))}"


def _date(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def _say(as_json: bool, value: dict[str, Any], line: str) -> None:
    if as_json:
        print_json(value)
    else:
        typer.echo(line)
