"""Passwords and the htpasswd file."""

from __future__ import annotations

import time
from pathlib import Path

import bcrypt
import pytest

from artifact.errors import InvalidInput, NotFound
from registry.access import htpasswd, passwords
from registry.access.passwords import PasswordChecker, hash_password
from tests.registry.secured import quick_hash


def test_right_and_wrong() -> None:
    checker, hashed = PasswordChecker(), quick_hash("secret")
    assert not checker.remembers("a", "secret", hashed)
    assert checker.check("a", "secret", hashed)
    assert checker.remembers("a", "secret", hashed)
    for name, password, against in (
        ("a", "Secret", hashed), ("b", "secret", hashed), ("a", "secret", quick_hash("secret")), ("a", "secret", None),
    ):  # fmt: skip
        assert not checker.remembers(name, password, against)
    assert not checker.check("a", "wrong", hashed)
    assert not checker.remembers("a", "wrong", hashed)
    assert not checker.check("a", "secret", None)


def test_what_is_remembered_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    checker, hashed = PasswordChecker(), quick_hash("secret")
    assert checker.check("a", "secret", hashed)
    later = time.monotonic() + 301
    monkeypatch.setattr(passwords.time, "monotonic", lambda: later)
    assert not checker.remembers("a", "secret", hashed)


def test_nothing_is_cut_short() -> None:
    """bcrypt ignores what comes after 72 bytes: a longer password is refused, chosen or given."""
    with pytest.raises(InvalidInput, match="72 bytes"):
        hash_password("x" * 73)
    hashed = bcrypt.hashpw(b"x" * 72, bcrypt.gensalt(4)).decode()
    assert PasswordChecker().check("a", "x" * 72, hashed)
    assert not PasswordChecker().check("a", "x" * 73, hashed)
    assert not PasswordChecker().check("a", "x\0y", hashed)


def test_unknown_names_take_as_long() -> None:
    """Whether a name exists is not told by the time an answer takes: a hash of the full cost is computed."""
    checker = PasswordChecker()
    started = time.thread_time()
    checker.check("nobody", "guess", None)
    unknown = time.thread_time() - started
    hashed = hash_password("long enough")
    started = time.thread_time()
    checker.check("somebody", "guess", hashed)
    known = time.thread_time() - started
    assert known / 3 < unknown < known * 3


@pytest.mark.parametrize(
    "line",
    ["alice", "alice:plain", "alice:$apr1$x$y", "alice:{SHA}abc", "alice:$2y$05$short", "alice:$2b$31$" + "a" * 53,
     ":$2b$04$" + "a" * 53, "robot+x:$2b$04$" + "a" * 53, "anonymous:$2b$04$" + "a" * 53],
)  # fmt: skip
def test_lines_that_are_refused(tmp_path: Path, line: str) -> None:
    """Only bcrypt, and at no cost that would stop the server; the message points at the line."""
    file = tmp_path / "htpasswd"
    file.write_text(f"# people\nbob:{quick_hash('x')}\n{line}\n")
    with pytest.raises(InvalidInput, match="htpasswd:3: "):
        htpasswd.read(file)


def test_file(tmp_path: Path) -> None:
    file = tmp_path / "htpasswd"
    assert htpasswd.add(file, "bob", quick_hash("x"))
    assert not htpasswd.add(file, "bob", quick_hash("y"))
    assert list(htpasswd.read(file)) == ["bob"]
    with pytest.raises(NotFound):
        htpasswd.remove(file, "eve")
    htpasswd.remove(file, "bob")
    assert htpasswd.read(file) == {}
    file.write_text(f"a:{quick_hash('x')}\na:{quick_hash('y')}\n")
    with pytest.raises(InvalidInput, match="twice"):
        htpasswd.read(file)
