"""Telling others what happened: events posted to the URLs of the configuration, and to no others.

A push never waits for a receiver. Each receiver has a queue of its own, in order, with an end: when a receiver is down
for so long that its queue is full, further events for it are dropped and counted. Events live in memory; those that
wait when the process is killed are lost, so a receiver that must know everything compares with the registry at times.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import queue
import random
import threading
import time
from collections.abc import Sequence

import urllib3
from urllib3.exceptions import HTTPError

from artifact.version import __version__
from registry.config.sections import Webhook
from registry.events import CONTENT_TYPE, Event
from registry.metrics import EVENTS, Metrics
from supplychain.glob import matches

SIGNATURE = "X-Stowage-Signature"
"""The header with ``sha256=`` and the HMAC-SHA256 of the body under the receiver's secret, in hexadecimal."""

_QUEUE = 1000
_ATTEMPTS = 8
_FIRST_DELAY, _LONGEST_DELAY = 1.0, 60.0  # seconds between attempts, doubled each time
_TIMEOUT = urllib3.Timeout(connect=5.0, read=10.0)
_LATER = (408, 425, 429)  # refusals that are not for ever
_log = logging.getLogger("registry.webhooks")


class Webhooks:
    """The receivers of a configuration. `source` is the registry's URL, as the events state it."""

    def __init__(
        self, hooks: Sequence[Webhook], source: str, metrics: Metrics, first_delay: float = _FIRST_DELAY
    ) -> None:
        self._receivers = [_Receiver(hook, source, metrics, first_delay) for hook in hooks]

    def publish(self, event: Event) -> None:
        """Put an event into the queues of those who want it. Never blocks."""
        for receiver in self._receivers:
            if receiver.wants(event):
                receiver.put(event)

    def close(self, seconds: float = 5.0) -> None:
        """Deliver what waits, each event once more at most, and end, within some seconds."""
        deadline = time.monotonic() + seconds
        for receiver in self._receivers:
            receiver.closing.set()
            receiver.put(None)
        for receiver in self._receivers:
            receiver.thread.join(max(0.0, deadline - time.monotonic()))


class _Receiver:
    def __init__(self, hook: Webhook, source: str, metrics: Metrics, first_delay: float) -> None:
        self._hook = hook
        self._source = source
        self._metrics = metrics
        self._first_delay = first_delay
        self._secret = hook.secret_file.read_bytes().strip() if hook.secret_file else None
        self._queue: queue.Queue[Event | None] = queue.Queue(_QUEUE)
        self._http = urllib3.PoolManager(timeout=_TIMEOUT, retries=False)
        self.closing = threading.Event()
        self.thread = threading.Thread(target=self._run, name="webhook", daemon=True)
        self.thread.start()

    def wants(self, event: Event) -> bool:
        return event.kind in self._hook.events and any(
            matches(pattern, event.repository) for pattern in self._hook.repositories
        )

    def put(self, event: Event | None) -> None:
        try:
            self._queue.put_nowait(event)
        except queue.Full:
            self._metrics.add(EVENTS, "dropped")

    def _run(self) -> None:
        while not (self.closing.is_set() and self._queue.empty()):
            event = self._queue.get()
            if event is not None:
                outcome = "delivered" if self._deliver(event) else "failed"
                self._metrics.add(EVENTS, outcome)

    def _deliver(self, event: Event) -> bool:
        body, delay = event.to_json(self._source), self._first_delay
        headers = {"Content-Type": CONTENT_TYPE, "User-Agent": f"stowage-registry/{__version__}"}
        if self._secret is not None:
            headers[SIGNATURE] = f"sha256={hmac.new(self._secret, body, hashlib.sha256).hexdigest()}"
        problem = ""
        for attempt in range(_ATTEMPTS):
            if attempt and self.closing.wait(delay * random.uniform(0.75, 1.25)):  # noqa: S311
                break
            delay = min(2 * delay, _LONGEST_DELAY) if attempt else delay
            try:
                # A receiver cannot send the registry elsewhere: redirects are answers like any other.
                answer = self._http.request("POST", self._hook.url, body=body, headers=headers, redirect=False)
            except HTTPError as error:
                problem = str(error)
                continue
            if 200 <= answer.status < 300:
                return True
            problem = f"it answered {answer.status}"
            if answer.status < 500 and answer.status not in _LATER:
                break
        _log.error("event %s of %s was not delivered to a webhook: %s", event.id, event.subject, problem[:200])
        return False
