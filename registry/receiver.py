"""One receiver of webhook events: a queue, and a thread that posts what is in it."""

from __future__ import annotations

import hashlib
import hmac
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from enum import Enum
from urllib.parse import urlsplit

import urllib3
from urllib3.exceptions import HTTPError

from artifact.errors import InvalidInput, StowageError
from artifact.version import USER_AGENT
from registry.config.sections import Webhook
from registry.events import CONTENT_TYPE, Event
from registry.metrics import EVENTS, Metrics
from supplychain.glob import matches

SIGNATURE = "X-Stowage-Signature"
"""The header with ``sha256=`` and the HMAC-SHA256 of the body under the receiver's secret, in hexadecimal."""

MOST_WAITING = 10_000
"""Most pushes, deletions and the like that wait for one receiver in one server process."""

FIRST_DELAY, _LONGEST_DELAY = 1.0, 60.0  # seconds between attempts, doubled each time
_ATTEMPTS = 8  # answers after which an event that is refused for now lets others go first
_QUIET = 60.0  # seconds between two complaints about one receiver
_TIMEOUT = urllib3.Timeout(connect=5.0, read=10.0)
_LATER = (408, 425, 429)  # refusals that are not for ever
_log = logging.getLogger("registry.webhooks")


class _Outcome(Enum):
    DELIVERED = "delivered"
    FAILED = "failed"
    LATER = "later"
    AWAY = "away"


class _Waiting:
    """What waits under one key; its events are read when their turn comes."""

    def __init__(self, key: str, read: Callable[[], list[Event]]) -> None:
        self.key = key
        self.read = read
        self.events: deque[Event] | None = None
        self.attempts = 0


def receiver_id(hook: Webhook) -> str:
    """What a receiver is called in the store: the same in every process with this configuration."""
    said = f"{hook.url}\n{hook.secret_file or ''}"
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def secret_of(hook: Webhook) -> bytes | None:
    """The key of a receiver's signatures. Raises `InvalidInput`."""
    if hook.secret_file is None:
        return None
    try:
        secret = hook.secret_file.read_bytes().strip()
    except OSError as error:
        raise InvalidInput(f"cannot read {hook.secret_file}: {error.strerror}") from None
    if not secret:
        raise InvalidInput(f"{hook.secret_file} is empty: a webhook's secret file holds one line")
    return secret


class Receiver:
    """Posts events to one URL, in order. `told` is called with the key of what has been delivered or given up. Raises
    `InvalidInput` if the secret cannot be read."""

    def __init__(
        self, hook: Webhook, source: str, metrics: Metrics, told: Callable[[str], None], first_delay: float
    ) -> None:
        self.id = receiver_id(hook)
        self._hook = hook
        self._source = source
        self._metrics = metrics
        self._told = told
        self._first_delay = self._delay = first_delay
        self._secret = secret_of(hook)
        self._queue: deque[_Waiting] = deque()
        self._change = threading.Condition()
        self._ending = False  # take no more time than one attempt for each event
        self._stopped = False  # take none at all
        self._complained = float("-inf")
        self._away = False
        self._http = urllib3.PoolManager(timeout=_TIMEOUT, retries=False)
        self.thread = threading.Thread(target=self._run, name="webhook", daemon=True)

    def __len__(self) -> int:
        return len(self._queue)

    def wants(self, event: Event) -> bool:
        """Whether the configuration asks for an event."""
        return event.kind in self._hook.events and any(
            matches(pattern, event.repository) for pattern in self._hook.repositories
        )

    def put(self, key: str, read: Callable[[], list[Event]]) -> bool:
        """Deliver what is kept under a key, after what waits already; False if the receiver has been stopped. Never
        blocks."""
        with self._change:
            if not self._stopped:
                self._queue.append(_Waiting(key, read))
                self._change.notify()
            return not self._stopped

    def finish(self) -> None:
        """Try everything that waits once more, and end."""
        with self._change:
            self._ending = True
            self._change.notify()

    def stop(self) -> list[str]:
        """End now; returns the keys of what waits."""
        with self._change:
            self._ending = self._stopped = True
            self._change.notify()
            return [waiting.key for waiting in self._queue]

    def complain(self, problem: str) -> None:
        """Log that something is wrong with the receiver, now and then. The URL may hold a secret: its host is told."""
        if time.monotonic() - self._complained >= _QUIET:
            self._complained = time.monotonic()
            _log.warning("webhook receiver %s %s", urlsplit(self._hook.url).hostname, problem)

    def _run(self) -> None:
        while True:
            with self._change:
                while not self._queue and not self._ending:
                    self._change.wait()
                if self._stopped or not self._queue:
                    return
                waiting = self._queue[0]
            outcome = self._work(waiting)
            with self._change:
                if self._stopped:
                    return
                if outcome in (_Outcome.DELIVERED, _Outcome.FAILED):
                    self._queue.popleft()
                    self._delay = self._first_delay
                    continue
                # Away, it loses nothing of the order. What it refuses again and again does not hold up the rest.
                waiting.attempts += outcome is _Outcome.LATER
                if self._ending:
                    self._queue.popleft()
                elif waiting.attempts >= _ATTEMPTS:
                    waiting.attempts = 0
                    self._queue.rotate(-1)
                self._pause()

    def _pause(self) -> None:
        """Wait before the next attempt; called with the lock, which is given up meanwhile."""
        until = time.monotonic() + self._delay * random.uniform(0.75, 1.25)  # noqa: S311
        self._delay = min(2 * self._delay, _LONGEST_DELAY)
        while not self._ending and (left := until - time.monotonic()) > 0:
            self._change.wait(left)

    def _work(self, waiting: _Waiting) -> _Outcome:
        """Post the events under one key; what has been posted is not posted again by this process."""
        if waiting.events is None:
            try:
                waiting.events = deque(waiting.read())
            except (StowageError, OSError) as error:
                self.complain(f"has to wait for the store: {error}")
                return _Outcome.AWAY
        while waiting.events:
            event = waiting.events[0]
            if event.time + self._hook.keep < time.time():
                self._metrics.add(EVENTS, "expired")
                self.complain(f"was not reached for {self._hook.keep:.0f} s: what is older is dropped")
            else:
                outcome = self._post(event)
                if outcome in (_Outcome.LATER, _Outcome.AWAY):
                    return outcome
                self._metrics.add(EVENTS, outcome.value)
            waiting.events.popleft()
        self._told(waiting.key)
        return _Outcome.DELIVERED

    def _post(self, event: Event) -> _Outcome:
        body = event.to_json(self._source)
        headers = {"Content-Type": CONTENT_TYPE, "User-Agent": USER_AGENT}
        if self._secret is not None:
            headers[SIGNATURE] = f"sha256={hmac.new(self._secret, body, hashlib.sha256).hexdigest()}"
        try:
            # A receiver cannot send the registry elsewhere: redirects are answers like any other.
            answer = self._http.request("POST", self._hook.url, body=body, headers=headers, redirect=False)
        except HTTPError as error:
            self._away = True
            self.complain(f"cannot be reached, its events wait: {str(error)[:200]}")
            return _Outcome.AWAY
        if 200 <= answer.status < 300:
            if self._away:
                self._away, self._complained = False, float("-inf")
                _log.warning("webhook receiver %s can be reached again", urlsplit(self._hook.url).hostname)
            return _Outcome.DELIVERED
        if answer.status < 500 and answer.status not in _LATER:
            _log.error("a webhook refuses event %s of %s: it answered %s", event.id, event.subject, answer.status)
            return _Outcome.FAILED
        self._away = True
        self.complain(f"answers {answer.status}, its events wait")
        return _Outcome.LATER
