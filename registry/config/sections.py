"""What ``registry.toml`` says, each section as one value. Every default here is what no file at all means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from registry.access.rights import Rule

DEFAULT_STORAGE = "./registry-data"
DEFAULT_LISTEN = "127.0.0.1:5000"


@dataclass(frozen=True)
class Tls:
    """``[server.tls]``. With `client_ca`, a client may show a certificate of that authority instead of a password."""

    certificate: Path
    key: Path
    client_ca: Path | None = None


@dataclass(frozen=True)
class ForwardedCertificate:
    """``[server.forwarded-certificate]``: the `header`, in lower case, in which a trusted proxy passes on the
    certificate a client has shown it, and the authority it must be of."""

    header: str
    client_ca: Path


@dataclass(frozen=True)
class Server:
    """``[server]``. `public_url` is how clients reach the registry; `deletes` whether anyone may delete anything;
    `trusted_proxies` are the networks of proxies whose X-Forwarded-For and X-Request-Id count."""

    storage: str = DEFAULT_STORAGE
    listen: str = DEFAULT_LISTEN
    workers: int = 1
    redirect: bool = True
    public_url: str = ""
    deletes: bool = True
    tls: Tls | None = None
    trusted_proxies: tuple[str, ...] = ()
    forwarded_certificate: ForwardedCertificate | None = None


@dataclass(frozen=True)
class TokenService:
    """``[auth.token]``: tokens of Docker's flow, signed with `key`; those signed with `previous` keys hold until they
    expire. `lifetime` in seconds."""

    key: Path
    service: str
    previous: tuple[Path, ...] = ()
    lifetime: int = 300


@dataclass(frozen=True)
class Auth:
    """``[auth]``: how principals show who they are."""

    htpasswd: Path | None = None
    robots: bool = False
    token: TokenService | None = None


@dataclass(frozen=True)
class OidcIssuer:
    """``[[oidc]]``: an issuer whose tokens are taken. Each of `claims` must match one of its patterns. `jwks_url` is
    asked of the issuer's own discovery document where it is empty; `ca` is for issuers with a private authority."""

    name: str
    issuer: str
    audience: str
    claims: Mapping[str, tuple[str, ...]]
    jwks_url: str = ""
    ca: Path | None = None
    algorithms: tuple[str, ...] = ("RS256", "ES256")


@dataclass(frozen=True)
class TagPattern:
    """``REPOSITORY:TAG``, both patterns with ``*`` (not across ``/``) and ``**``."""

    repository: str
    tag: str


@dataclass(frozen=True)
class Immutable:
    """``[immutable]``: tags that are never moved. `precision_tags` are those that state the precision of a model;
    with `keep`, immutable tags are not deleted either."""

    precision_tags: bool = True
    tags: tuple[TagPattern, ...] = ()
    exceptions: tuple[TagPattern, ...] = ()
    keep: bool = False


@dataclass(frozen=True)
class Quarantine:
    """``[[admission.quarantine]]``: tags that are not served until `policy` allows what they point at."""

    tags: tuple[TagPattern, ...]
    policy: Path


@dataclass(frozen=True)
class Admission:
    """``[admission]``: what is asked of model artifacts beyond a tag that tells the truth. `refuse` are patterns of
    file names, compared without regard to case; `refuse_kinds` are kinds of files by their names."""

    layout: bool = False
    refuse: tuple[str, ...] = ()
    refuse_kinds: tuple[str, ...] = ()
    quarantine: tuple[Quarantine, ...] = ()


@dataclass(frozen=True)
class Referrers:
    """``[referrers]``: with `fallback_tags` they are listed under the tag of the Referrers Tag Schema as well, for
    replicators that carry tags alone."""

    fallback_tags: bool = False


@dataclass(frozen=True)
class Upstream:
    """``[[proxy.upstreams]]``: the registry at `url`, whose repositories appear below `prefix`. `namespaces` are the
    hosts that containerd's ``ns`` may name for it; `token_hosts` those that its tokens may come from besides its own;
    `tag_ttl` for how many seconds a tag is not asked for again."""

    prefix: str
    url: str
    namespaces: tuple[str, ...] = ()
    username: str = ""
    password_file: Path | None = None
    password_env: str = ""
    token_hosts: tuple[str, ...] = ()
    tag_ttl: float = 300


@dataclass(frozen=True)
class Proxy:
    """``[proxy]``: copies of other registries, made as they are asked for. With `serve_stale`, tags that are held are
    served while their upstream is away; `spool` is where blobs lie while they come, the system's place if None."""

    upstreams: tuple[Upstream, ...] = ()
    tag_ttl: float = 300
    serve_stale: bool = True
    spool: Path | None = None


@dataclass(frozen=True)
class Limits:
    """``[limits]``, for each principal; 0 requests a second means no limit. `burst` is how many may come at once.
    `failed_logins` are those that may fail a minute from one address, 0 for any number."""

    requests_per_second: float = 0.0
    burst: int = 0
    failed_logins: int = 30


@dataclass(frozen=True)
class Webhook:
    """``[[webhooks]]``: `secret_file` holds the key of the signature, None for none. `keep` is for how many seconds an
    event waits for a receiver that is away."""

    url: str
    events: tuple[str, ...]
    secret_file: Path | None = None
    repositories: tuple[str, ...] = ("**",)
    keep: float = 3 * 86400


@dataclass(frozen=True)
class Log:
    """``[log]``: `format` of the access log is ``text``, ``json`` or ``none``."""

    format: str = "text"


@dataclass(frozen=True)
class Metrics:
    """``[metrics]``: whether ``/metrics`` is there."""

    enabled: bool = True


@dataclass(frozen=True)
class Gc:
    """``[gc]``, in seconds. An `interval` of 0 means that the server collects no garbage by itself."""

    interval: float = 0
    grace: float = 24 * 3600


@dataclass(frozen=True)
class Transparency:
    """``[transparency]``: the log called `origin`, whose checkpoints `key` signs. With `public`, its entries are for
    everybody, else for those who may pull from every repository; `principals` is whether entries say who did it."""

    key: Path
    origin: str
    public: bool = False
    principals: bool = False


@dataclass(frozen=True)
class Config:
    """The whole file. `access` empty and `restricted` false mean no access control at all."""

    server: Server = field(default_factory=Server)
    auth: Auth = field(default_factory=Auth)
    oidc: tuple[OidcIssuer, ...] = ()
    access: tuple[Rule, ...] = ()
    immutable: Immutable = field(default_factory=Immutable)
    admission: Admission = field(default_factory=Admission)
    referrers: Referrers = field(default_factory=Referrers)
    proxy: Proxy | None = None
    limits: Limits = field(default_factory=Limits)
    webhooks: tuple[Webhook, ...] = ()
    log: Log = field(default_factory=Log)
    metrics: Metrics = field(default_factory=Metrics)
    gc: Gc = field(default_factory=Gc)
    transparency: Transparency | None = None

    @property
    def restricted(self) -> bool:
        """Whether requests are held against access rules; without any, everyone may do everything."""
        return bool(self.access)
