"""Logins that fail: so many from one address, in all processes together, and no work for those beyond."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from registry.access.passwords import hash_password
from registry.limits import Buckets, LoginLimits, RateLimits, TooMany
from tests.registry.pushing import error_code
from tests.registry.secured import AUTH, PASSWORDS, RULES, TOKEN, client, configure
from tests.registry.servers import RunningRegistry, StartRegistry

PROXY = '[server]\ntrusted-proxies = ["127.0.0.1"]\n'
LIMIT = "[limits]\nfailed-logins = 3\n"
RIGHT = PASSWORDS["alice"]


@pytest.fixture
def server(tmp_path: Path, registry_server: StartRegistry) -> RunningRegistry:
    config = configure(tmp_path, PROXY + AUTH + TOKEN + RULES + LIMIT)
    (tmp_path / "htpasswd").write_text(f"alice:{hash_password(RIGHT)}\n")
    return registry_server(tmp_path / "s", "--config", str(config))


def login(server: RunningRegistry, password: str, address: str, path: str = "/v2/") -> httpx.Response:
    with client(server.url, "alice", password) as caller:
        return caller.get(path, headers={"X-Forwarded-For": address})


def seconds_of_processor(server: RunningRegistry) -> float:
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("path", ["/v2/", "/token"])
def test_beyond_the_limit_no_password_is_checked(server: RunningRegistry, path: str) -> None:
    """429 with the time to wait, from this address alone; what was found right shortly before still gets in."""
    assert login(server, RIGHT, "192.0.2.1").status_code == 200
    answers = [login(server, f"wrong-{number}", "192.0.2.1", path) for number in range(4)]
    assert [answer.status_code for answer in answers] == [401, 401, 401, 429]
    assert error_code(answers[3]) == "TOOMANYREQUESTS"
    assert 1 <= int(answers[3].headers["retry-after"]) <= 20
    before = seconds_of_processor(server)
    statuses = {login(server, f"wrong-{number}", "192.0.2.1", path).status_code for number in range(60)}
    assert 429 in statuses
    assert seconds_of_processor(server) - before < 60 * 0.1, "sixty bcrypt hashes of this cost take more"
    assert login(server, RIGHT, "192.0.2.1", path).status_code == 200
    assert login(server, "wrong", "192.0.2.2", path).status_code == 401
    assert "limited_total" in httpx.get(f"{server.url}/metrics").text


def test_an_ipv6_network_is_one_address(server: RunningRegistry) -> None:
    answers = [login(server, "wrong", f"2001:db8::{number}").status_code for number in range(1, 6)]
    assert answers[:3] == [401] * 3
    assert 429 in answers[3:]
    assert login(server, "wrong", "2001:db8:1::1").status_code == 401


def test_right_passwords_do_not_count(server: RunningRegistry) -> None:
    """Forty at once, of a fleet that starts behind one address: the check is made once, and shared."""
    with ThreadPoolExecutor(40) as pool:
        answers = pool.map(lambda _: login(server, RIGHT, "192.0.2.3").status_code, range(40))
    assert set(answers) == {200}
    assert login(server, "wrong", "192.0.2.3").status_code == 401


def test_the_limit_is_one_for_all_processes(tmp_path: Path, registry_server: StartRegistry) -> None:
    text = AUTH + RULES + "[limits]\nfailed-logins = 6\n"
    server = registry_server(tmp_path / "s", "--config", str(configure(tmp_path, text)), "--workers", "2")
    begun = time.monotonic()
    with ThreadPoolExecutor(4) as pool:  # a connection each: they come to whichever process takes them
        wrong = list(pool.map(lambda n: attempt(server, f"wrong-{n}"), range(40)))
    more = (time.monotonic() - begun) * 6 / 60 + 1
    assert 6 <= wrong.count(401) <= 6 + more
    assert wrong.count(401) + wrong.count(429) == 40


def attempt(server: RunningRegistry, password: str, user: str = "alice") -> int:
    with client(server.url, user, password) as caller:
        return caller.get("/v2/").status_code


def test_requests_are_limited_in_all_processes_together(tmp_path: Path, registry_server: StartRegistry) -> None:
    text = "[limits]\nrequests-per-second = 0.5\nburst = 12\n"
    (tmp_path / "registry.toml").write_text(text)
    config = str(tmp_path / "registry.toml")
    server = registry_server(tmp_path / "s", "--config", config, "--workers", "3")
    begun = time.monotonic()
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: httpx.get(f"{server.url}/v2/").status_code, range(60)))
    more = (time.monotonic() - begun) * 0.5 + 1
    assert 12 <= answers.count(200) <= 12 + more
    assert set(answers) == {200, 429}


def test_switched_off(tmp_path: Path, registry_server: StartRegistry) -> None:
    text = AUTH + RULES + "[limits]\nfailed-logins = 0\n"
    server = registry_server(tmp_path / "s", "--config", str(configure(tmp_path, text)))
    assert {attempt(server, f"wrong-{number}") for number in range(40)} == {401}


def test_two_tables_over_one_file(tmp_path: Path) -> None:
    """As of two processes: they see each other's counts; a full table forgets who was silent for longest."""
    now = 1000.0
    file = Buckets.create(tmp_path / "limits")
    one, two = (RateLimits(1, 4, Buckets(file), clock=lambda: now) for _ in range(2))
    assert [limits.wait("x") == 0 for limits in (one, two, one, two, one, two)] == [True] * 4 + [False] * 2
    now += 1
    assert one.wait("x") == 0
    assert two.wait("x") > 0
    for number in range(100_000):
        now += 0.00001
        assert two.wait(f"sender {number}") == 0
    assert len(file.read_bytes()) < 512 * 1024


def test_what_was_right_is_given_back() -> None:
    limits = LoginLimits(2)
    for _ in range(10):
        limits.attempt("192.0.2.1")
        limits.succeeded("192.0.2.1")
    limits.attempt("192.0.2.1")
    limits.attempt("::ffff:192.0.2.1")
    with pytest.raises(TooMany) as caught:
        limits.attempt("192.0.2.1")
    assert 0 < caught.value.seconds <= 30
    for address in ("", "unix", "fe80::1%eth0", "192.0.2.9"):
        limits.attempt(address)
