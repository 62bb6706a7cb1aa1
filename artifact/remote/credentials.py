"""Credentials in Docker's ``config.json`` and its credential helpers.

A credential belongs to one host and is looked up by that host's name only. Source: Docker CLI, "docker login" and
"Credential helpers" (the helper protocol: ``docker-credential-NAME get|store|erase``).
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from artifact.errors import InvalidInput, Malformed, StowageError
from artifact.layout.files import write_atomically
from artifact.manifest import load_json

_HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DOCKER_HUB = "https://index.docker.io/v1/"
_DOCKER_HUB_HOSTS = {"docker.io", "index.docker.io", "registry-1.docker.io"}
_TOKEN_USER = "<token>"  # noqa: S105  the name a helper returns with an identity token, not a secret
_HELPER_TIMEOUT = 30


@dataclass(frozen=True)
class Login:
    """A user name and secret. `identity_token` is an OAuth2 refresh token that stands in for both."""

    username: str
    password: str = field(repr=False)
    identity_token: str = field(default="", repr=False)

    @property
    def basic(self) -> str:
        """The value of an ``Authorization`` header (RFC 7617)."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


class Credentials:
    """The logins one Docker config file knows."""

    def __init__(self, path: Path | None, config: dict[str, Any]) -> None:
        self._path = path
        self._config = config

    @classmethod
    def load(cls) -> Credentials:
        """Read ``$DOCKER_CONFIG/config.json`` or ``~/.docker/config.json``; no file means no logins. Raises
        `InvalidInput` if it is no JSON object."""
        folder = os.environ.get("DOCKER_CONFIG")
        try:
            path = (Path(folder) if folder else Path.home() / ".docker") / "config.json"
        except RuntimeError:  # a user who has no home
            return cls(None, {})
        try:
            raw = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return cls(path, {})
        try:
            return cls(path, load_json(raw, str(path)))
        except Malformed as error:
            raise InvalidInput(f"{error}: mend it, or log in again after removing it") from None

    def get(self, host: str) -> Login | None:
        """The login of `host`, from its own helper, the default store, or the file, in Docker's order."""
        helper = self._table("credHelpers").get(host) or self._config.get("credsStore")
        if helper:
            login = self._ask(helper, host)
            if login:
                return login
        for key in _keys(host):
            entry = self._table("auths").get(key)
            if isinstance(entry, dict):
                login = _decode(entry, self._path, host)
                if login:
                    return login
        return None

    def store(self, host: str, username: str, password: str) -> str:
        """Keep a login, in the helper that is set up for `host` or in the file. Returns where it was kept."""
        helper = self._table("credHelpers").get(host) or self._config.get("credsStore")
        key = _keys(host)[0]
        if helper:
            _call(helper, "store", json.dumps({"ServerURL": key, "Username": username, "Secret": password}))
            return f"docker-credential-{helper}"
        encoded = base64.b64encode(f"{username}:{password}".encode()).decode()
        self._config["auths"] = {**self._table("auths"), key: {"auth": encoded}}
        return str(self._save())

    def erase(self, host: str) -> bool:
        """Forget the login of `host`. False if there was none."""
        helper = self._table("credHelpers").get(host) or self._config.get("credsStore")
        if helper:
            known = self._ask(helper, host) is not None
            _call(helper, "erase", _keys(host)[0])
            return known
        auths = self._table("auths")
        known = any(auths.pop(key, None) is not None for key in _keys(host))
        if known:
            self._save()
        return known

    def _ask(self, helper: str, host: str) -> Login | None:
        for key in _keys(host):
            answer = _call(helper, "get", key)
            if answer is None:
                continue
            value = load_json(answer, f"answer of docker-credential-{helper}")
            username, secret = str(value.get("Username", "")), str(value.get("Secret", ""))
            return Login("", "", secret) if username == _TOKEN_USER else Login(username, secret)
        return None

    def _table(self, key: str) -> dict[str, Any]:
        table = self._config.get(key)
        if table is None:
            return {}
        if not isinstance(table, dict):
            raise InvalidInput(f"{self._path}: {key} must be an object")
        return table

    def _save(self) -> Path:
        if self._path is None:
            raise InvalidInput("no folder to keep logins in, since this user has no home: name one with DOCKER_CONFIG")
        path = self._path.resolve()  # a link to where somebody keeps it stays one
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(path, json.dumps(self._config, indent="\t").encode(), mode=0o600)
        return self._path


def _keys(host: str) -> list[str]:
    """The spellings under which Docker keeps the login of one host."""
    if host in _DOCKER_HUB_HOSTS:
        return [_DOCKER_HUB, "docker.io"]
    return [host, f"https://{host}", f"http://{host}", f"https://{host}/v2/", f"https://{host}/v1/"]


def _decode(entry: dict[str, Any], path: Path | None, host: str) -> Login | None:
    token = entry.get("identitytoken")
    if isinstance(token, str) and token:
        return Login("", "", token)
    auth = entry.get("auth")
    if isinstance(auth, str) and auth:
        try:
            username, colon, password = base64.b64decode(auth, validate=True).decode().partition(":")
        except ValueError:  # not base64, or not UTF-8
            colon = ""
        if not colon:
            raise InvalidInput(f"{path}: the login of {host} cannot be read: log in again")
        return Login(username, password.rstrip("\0"))
    if isinstance(entry.get("username"), str) and isinstance(entry.get("password"), str):
        return Login(entry["username"], entry["password"])
    return None


def _call(helper: Any, action: str, request: str) -> bytes | None:
    """Run a credential helper; None if it knows nothing of what was asked."""
    if not isinstance(helper, str) or not _HELPER.fullmatch(helper):
        raise InvalidInput(f"not a credential helper's name: {str(helper)[:40]!r}")
    program = f"docker-credential-{helper}"
    try:
        done = subprocess.run([program, action], input=request.encode(), capture_output=True, timeout=_HELPER_TIMEOUT)
    except FileNotFoundError:
        raise StowageError(f"{program} is named in Docker's config but is not on PATH: install it") from None
    except subprocess.TimeoutExpired:
        raise StowageError(f"{program} {action} did not answer within {_HELPER_TIMEOUT} s") from None
    if done.returncode:
        said = (done.stdout or done.stderr).decode("utf-8", "replace").strip()
        if "not found" in said:
            return None
        raise StowageError(f"{program} {action} failed: {said[:200]}")
    return done.stdout
