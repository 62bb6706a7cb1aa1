"""What happened, as CloudEvents. Source: CloudEvents 1.0, "Required Attributes", and its JSON format."""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

TYPE = "dev.stowage.registry."
CONTENT_TYPE = "application/cloudevents+json; charset=utf-8"


@dataclass(frozen=True)
class Event:
    """`kind` is ``push`` (a manifest came), ``tag`` (a tag was given or moved) or ``delete`` (of a manifest, or of a
    tag, which is then named). `size` is that of the manifest, in bytes; `previous` what a moved tag pointed at."""

    kind: str
    repository: str
    digest: str | None = None
    tag: str | None = None
    media_type: str | None = None
    size: int | None = None
    previous: str | None = None
    principal: str = "anonymous"
    request_id: str = ""
    time: float = field(default_factory=time.time)
    id: str = field(default_factory=lambda: str(uuid.uuid4()))

    def to_json(self, source: str) -> bytes:
        """The event in structured mode; `source` is the URL of the registry."""
        data: dict[str, Any] = {
            "repository": self.repository,
            "digest": self.digest,
            "tag": self.tag,
            "previousDigest": self.previous,
            "mediaType": self.media_type,
            "size": self.size,
            "principal": self.principal,
            "requestId": self.request_id,
        }
        moment = datetime.fromtimestamp(self.time, UTC).isoformat(timespec="milliseconds")
        value = {
            "specversion": "1.0",
            "id": self.id,
            "source": source or "urn:stowage:registry",
            "type": TYPE + self.kind,
            "subject": self.subject,
            "time": moment.replace("+00:00", "Z"),
            "datacontenttype": "application/json",
            "data": {name: item for name, item in data.items() if item not in (None, "")},
        }
        return json.dumps(value, separators=(",", ":")).encode()

    @property
    def subject(self) -> str:
        """The reference the event is about, without the registry's host."""
        if self.tag is not None:
            return f"{self.repository}:{self.tag}"
        return f"{self.repository}@{self.digest}"
