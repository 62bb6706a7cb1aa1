"""``registry.toml``: the documented example, and what is refused with the line it stands on."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from artifact.errors import InvalidInput
from registry.access.rights import Principal, Right, grants_to
from registry.access.tokens import generate_key
from registry.cli import app
from registry.config.read import load, parse
from registry.config.sections import Config
from registry.log import key as log_key
from registry.settings import Settings, effective
from supplychain.keys import PrivateKey
from tests.registry.secured import AUTH, RULES, TOKEN, configure, quick_hash
from tests.registry.servers import ROOT, StartRegistry

EXAMPLE = ROOT / "docs/examples/registry.toml"


@pytest.fixture
def example(tmp_path: Path) -> Path:
    """The documented example beside files of the names it uses."""
    file = tmp_path / "registry.toml"
    file.write_text(EXAMPLE.read_text())
    (tmp_path / "htpasswd").write_text(f"alice:{quick_hash('x')}\n")
    generate_key(tmp_path / "token.key")
    log_key.generate(tmp_path / "log.key", "registry.example.org/log")
    (tmp_path / "webhook.secret").write_text("x")
    (tmp_path / "hub.password").write_text("x")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=x",
         "-keyout", tmp_path / "server.key", "-out", tmp_path / "server.crt"], check=True, capture_output=True,
    )  # fmt: skip
    for name in ("cluster-ca.crt", "clients.crt"):
        shutil.copy(tmp_path / "server.crt", tmp_path / name)
    key = PrivateKey.new().public
    (tmp_path / "release.pub").write_bytes(key.pem)
    (tmp_path / "policy.yaml").write_text(
        "version: 1\nauthorities: {r: {key: release.pub}}\nrules: [{match: ['**'], require: {any-of: [r]}}]\n"
    )
    return file


def test_the_documented_example(example: Path) -> None:
    """It loads, names every section there is, and says what its comments say."""
    config = load(example)
    for section in Config.__dataclass_fields__:
        assert getattr(config, section) != getattr(Config(), section) or section == "metrics"
    rights = {
        name: {repo: {r for g in grants_to(principal, config.access) if g.covers(repo) for r in g.rights}
               for repo in ("public/a", "team/a", "base/llama")}
        for name, principal in {
            "anonymous": Principal("anonymous"), "alice": Principal("alice"), "eve": Principal("eve"),
            "job": Principal("oidc:github:repo:example-org/x:ref:refs/heads/main", frozenset({"oidc:github"})),
        }.items()
    }  # fmt: skip
    assert rights["anonymous"] == {"public/a": {Right.PULL}, "team/a": set(), "base/llama": set()}
    assert rights["eve"]["team/a"] == {Right.PULL}
    assert rights["alice"]["base/llama"] == set(Right)
    assert rights["job"]["team/a"] == rights["job"]["base/llama"] == {Right.PULL, Right.PUSH}
    assert rights["job"]["public/a"] == {Right.PULL}
    done = CliRunner().invoke(app, ["config", "check", str(example)])
    assert done.exit_code == 0, done.exception
    assert "4 access rules" in done.stdout


ACCESS = '[[access]]\nprincipals = ["anonymous"]\nrepositories = ["**"]\nrights = ["pull"]\n'
OIDC = ACCESS + '[[oidc]]\nname = "x"\nissuer = "https://example.org"\naudience = "a"\n'


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("[servers]\n", 1, "no such setting"),
        ('[server]\nlisten = "nowhere"\n', 2, "HOST:PORT"),
        ("[server]\nworkers = 0\n", 2, "1 to 256"),
        ('[server]\npublic-url = "http://registry.example.org"\n', 2, "https"),
        ('[server]\npublic-url = "https://registry.example.org/sub"\n', 2, "path"),
        ('[server.tls]\nkey = "absent"\n', 1, "'certificate' is missing"),
        ('[server]\n[server.tls]\ncertificate = "absent"\nkey = "x"\n', 3, "no file"),
        ("[auth]\nrobots = true\n", 1, "[[access]]"),
        (ACCESS + '[auth]\nhtpasswd = "absent"\n', 6, "registry user add"),
        (ACCESS + '[auth.token]\nkey = "absent"\n', 6, "token-key"),
        ('[server]\nlisten = "0.0.0.0:5000"\n' + ACCESS + '[auth.token]\nkey = "absent"\n', 7, "public-url"),
        ('[[access]]\nprincipals = ["*"]\nrepositories = ["a"]\nrights = ["pull"]\n', 2, "say who"),
        ('[[access]]\nprincipals = ["a"]\nrepositories = ["A"]\nrights = ["pull"]\n', 3, "repository pattern"),
        ('[[access]]\nprincipals = ["a"]\nrepositories = ["a"]\nrights = [\n"pull",\n"admin"]\n', 6, "one of pull"),
        ('[[access]]\nprincipals = ["a"]\nrights = ["pull"]\n', 1, "'repositories' is missing"),
        ('[[access]]\nprincipals = []\nrepositories = ["a"]\nrights = ["pull"]\n', 2, "empty"),
        (OIDC.replace("https", "http") + 'claims = {sub = "x"}\n', 7, "https"),
        (OIDC + "claims = {}\n", 9, "at least one"),
        (OIDC + 'claims = {sub = "x"}\nalgorithms = ["HS256"]\n', 10, "one of RS256"),
        ('[immutable]\ntags = ["latest"]\n', 2, "REPOSITORY:TAG"),
        ('[admission]\n[[admission.quarantine]]\ntags = ["a:b"]\npolicy = "absent"\n', 4, "no file"),
        ("[limits]\nburst = 1\n", 2, "requests-per-second"),
        ("[limits]\nfailed-logins = -1\n", 2, "from 0"),
        ('[server.forwarded-certificate]\nheader = "X-C"\nclient-ca = "x"\n', 1, "trusted-proxies is missing"),
        ('[server.forwarded-certificate]\nclient-ca = "x"\nheader = "Host"\n', 3, "nothing else uses"),
        ('[[webhooks]]\nurl = "https://example.org"\nkeep = "1y"\n', 3, "length of time"),
        ('[[webhooks]]\nurl = "ftp://x"\n', 2, "https"),
        ('[[webhooks]]\nurl = "https://example.org"\nevents = ["pull"]\n', 3, "one of push"),
        ('[log]\nformat = "xml"\n', 2, "text, json"),
        ('[gc]\ngrace = "1s"\n', 2, "60"),
        ("[proxy]\n", 1, "'upstreams' is missing"),
    ],
)  # fmt: skip
def test_refused(tmp_path: Path, text: str, line: int, said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse(text.encode(), str(tmp_path / "registry.toml"))
    assert str(caught.value).startswith(f"{tmp_path}/registry.toml:{line}: ")
    assert said in str(caught.value)


def test_check_reads_the_files_too(tmp_path: Path) -> None:
    file = configure(tmp_path, AUTH + TOKEN + RULES)
    assert CliRunner().invoke(app, ["config", "check", str(file)]).exit_code == 0
    (tmp_path / "htpasswd").write_text("alice:plain\n")
    done = CliRunner().invoke(app, ["config", "check", str(file)])
    assert isinstance(done.exception, InvalidInput)
    assert "htpasswd:1" in str(done.exception)


def test_the_command_line_wins_and_says_so(tmp_path: Path) -> None:
    file = tmp_path / "registry.toml"
    file.write_text('[server]\nstorage = "s"\nworkers = 3\n[gc]\ninterval = "5m"\n')
    config, notes = effective(Settings(str(file), listen="127.0.0.1:1", workers=2, gc_interval=0))
    assert (config.server.storage, config.server.listen, config.server.workers) == ("s", "127.0.0.1:1", 2)
    assert config.gc.interval == 0
    assert [note.split()[0] for note in notes] == ["--workers", "--gc-interval"]
    assert effective(Settings()) == (Config(), [])
    settings = Settings(str(file), storage="x", redirect=False)
    assert Settings.from_text(settings.to_text()) == settings


def test_reach(tmp_path: Path) -> None:
    """Beyond this machine only with access rules, or where it is stated; not both."""
    open_file, closed_file = tmp_path / "open.toml", tmp_path / "closed.toml"
    open_file.write_text('[server]\nlisten = "0.0.0.0:5000"\n')
    closed_file.write_text('[server]\nlisten = "0.0.0.0:5000"\n' + ACCESS)
    with pytest.raises(InvalidInput, match="no access control"):
        effective(Settings(str(open_file)))
    with pytest.raises(InvalidInput, match="contradicts"):
        effective(Settings(str(closed_file), insecure_anonymous=True))
    assert effective(Settings(str(closed_file)))[0].restricted
    assert not effective(Settings(str(open_file), insecure_anonymous=True))[0].restricted


def test_serve(registry_server: StartRegistry, tmp_path: Path) -> None:
    """Options win over the file and say so; every worker has the configuration."""
    file = configure(tmp_path, '[server]\nlisten = "127.0.0.1:9"\nworkers = 1\n' + AUTH + RULES)
    server = registry_server(tmp_path / "s", "--config", str(file), "--workers", "2")
    assert "--listen on the command line" in server.log.read_text()
    assert {httpx.get(f"{server.url}/v2/").status_code for _ in range(8)} == {401}
    assert server.stop() == 0
