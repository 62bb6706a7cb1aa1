"""Where everything lies in the object store.

::

    data/<upload id>                                  bytes of one blob, written once, never moved
    blobs/<algorithm>/<aa>/<hex>                      record: which data object holds the blob
    repos/<name>/_blobs/<algorithm>/<hex>             link: this repository may serve the blob
    repos/<name>/_manifests/<algorithm>/<hex>         media type, newline, the manifest's bytes
    repos/<name>/_tags/<tag>                          the digest the tag points at: registry.tagrecord
    repos/<name>/_referrers/<algorithm>/<subject>/<hex>   descriptor of a manifest that refers to the subject
    uploads/<id>/session                              state of an upload
    robots/<name>                                     a robot account
    events/<owner>/<receiver>/<when>-<nonce>          events that a webhook has not been told yet
    events/<owner>/lease                              until when a process answers for telling them
    proxy/<name>/_mirror                              that the repository is a copy of one elsewhere, made bit by bit
    proxy/<name>/_tags/<tag>                          when its original was last asked for the tag
    log/state, log/tile/...                           the transparency log: registry.log.state
    gc/lease                                          who collects garbage, and until when
    gc/data/<upload id>                               since when a data object has been one that no record speaks of

A component of a repository name cannot begin with an underscore, so these never collide. Every function takes checked
values: a `Digest`, a name that `artifact.reference.is_name` accepts, an upload id that `is_upload_id` accepts.
"""

from __future__ import annotations

import re
import secrets

from artifact.digest import Digest

REPOSITORIES = "repos/"
DATA = "data/"
RECORDS = "blobs/"
UPLOADS = "uploads/"
ROBOTS = "robots/"
EVENTS = "events/"
PROXY = "proxy/"

_UPLOAD_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


def new_upload_id() -> str:
    """A fresh upload id: 128 random bits, spelled as a UUID, not to be guessed."""
    text = secrets.token_hex(16)
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def is_upload_id(text: str) -> bool:
    """Whether `text` has the shape of an upload id."""
    return _UPLOAD_ID.fullmatch(text) is not None


def data(upload: str) -> str:
    """The bytes of the blob that an upload brought."""
    return f"{DATA}{upload}"


def record(digest: Digest) -> str:
    """The blob's record; no record means no such blob."""
    return f"{RECORDS}{digest.algorithm}/{digest.hex[:2]}/{digest.hex}"


def repository(name: str) -> str:
    """Prefix of everything of one repository, and of nothing of repositories nested in it."""
    return f"{REPOSITORIES}{name}/_"


def blob(name: str, digest: Digest) -> str:
    """The link by which a repository serves a blob."""
    return f"{REPOSITORIES}{name}/_blobs/{digest.algorithm}/{digest.hex}"


def manifest(name: str, digest: Digest) -> str:
    """A manifest."""
    return f"{REPOSITORIES}{name}/_manifests/{digest.algorithm}/{digest.hex}"


def tags(name: str) -> str:
    """Prefix of a repository's tags."""
    return f"{REPOSITORIES}{name}/_tags/"


def tag(name: str, tag: str) -> str:
    """A tag."""
    return tags(name) + tag


def referrers(name: str, subject: Digest) -> str:
    """Prefix of the referrers of a subject."""
    return f"{REPOSITORIES}{name}/_referrers/{subject.algorithm}/{subject.hex}/"


def referrer(name: str, subject: Digest, digest: Digest) -> str:
    """One referrer of a subject."""
    return referrers(name, subject) + digest.hex


def mirror(name: str) -> str:
    """That a repository is a copy which holds no more than what was asked for."""
    return f"{PROXY}{name}/_mirror"


def asked(name: str, tag: str) -> str:
    """When the original of a copy was last asked for a tag."""
    return f"{PROXY}{name}/_tags/{tag}"


def robot(name: str) -> str:
    """A robot account."""
    return ROBOTS + name


def events(owner: str) -> str:
    """Prefix of the events that a process is to deliver."""
    return f"{EVENTS}{owner}/"


def events_lease(owner: str) -> str:
    """Until when a process answers for its events."""
    return f"{EVENTS}{owner}/lease"


def upload(id_: str) -> str:
    """Prefix of everything that an upload keeps between two requests."""
    return f"{UPLOADS}{id_}/"


def session(id_: str) -> str:
    """The state of an upload."""
    return upload(id_) + "session"
