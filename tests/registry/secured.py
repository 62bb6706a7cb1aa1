"""A registry with access control, for tests: its configuration, its users, and ways to talk to it."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import bcrypt
import httpx

from registry.access.tokens import generate_key

PASSWORDS = {name: f"{name}-has-a-password" for name in ("alice", "bob", "carol", "reader", "remover")}

RULES = """
[[access]]
principals = ["anonymous"]
repositories = ["public/**"]
rights = ["pull"]

[[access]]
principals = ["alice"]
repositories = ["**"]
rights = ["pull", "push", "overwrite", "delete"]

[[access]]
principals = ["bob"]
repositories = ["team/**", "public/**"]
rights = ["pull", "push"]

[[access]]
principals = ["carol"]
repositories = ["carol/**"]
rights = ["pull", "push"]

[[access]]
principals = ["reader"]
repositories = ["team/**"]
rights = ["pull"]

[[access]]
principals = ["remover"]
repositories = ["team/**"]
rights = ["delete"]
"""

AUTH = '[auth]\nhtpasswd = "htpasswd"\nrobots = true\n'
TOKEN = '[auth.token]\nkey = "token.key"\nservice = "test-registry"\n'


def configure(folder: Path, text: str = AUTH + RULES) -> Path:
    """Write users, a token key and ``registry.toml``; returns the last."""
    lines = [f"{name}:{quick_hash(password)}\n" for name, password in PASSWORDS.items()]
    (folder / "htpasswd").write_text("".join(lines))
    if not (folder / "token.key").exists():
        generate_key(folder / "token.key")
    file = folder / "registry.toml"
    file.write_text(text)
    return file


def quick_hash(password: str) -> str:
    """A bcrypt hash of the least cost."""
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()


def client(url: str, user: str | None = None, password: str | None = None) -> httpx.Client:
    """A client with Basic credentials, or none."""
    auth = None if user is None else (user, password if password is not None else PASSWORDS[user])
    return httpx.Client(base_url=url, auth=auth, timeout=30)


def fetch_token(url: str, *scopes: str, user: str | None = None, password: str | None = None) -> str:
    """A registry token."""
    with client(url, user, password) as caller:
        answer = caller.get("/token", params={"service": "test-registry", "scope": list(scopes)})
    assert answer.status_code == 200, answer.text
    return answer.json()["token"]


def bearer(url: str, token: str) -> httpx.Client:
    """A client with a token."""
    return httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=30)


def claims(token: str) -> dict[str, Any]:
    """What a token says, unchecked."""
    part = token.split(".")[1]
    return json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))


def docker_config(folder: Path, host: str, user: str, password: str | None = None) -> Path:
    """A folder with a ``config.json`` that holds one login."""
    folder.mkdir(parents=True, exist_ok=True)
    login = base64.b64encode(f"{user}:{password or PASSWORDS[user]}".encode()).decode()
    (folder / "config.json").write_text(json.dumps({"auths": {host: {"auth": login}}}))
    return folder
