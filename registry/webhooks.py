"""Telling others what happened: events posted to the URLs of the configuration, and to no others.

A push never waits for a receiver. What a receiver is to be told is written to the object store before the change it
tells of is made, and removed from there once it has been told: see `registry.outbox`. Each receiver has a thread, which
tells it one thing after the other.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import TracebackType

from artifact.errors import Malformed, NotFound, Refused, StowageError
from registry.config.sections import Webhook
from registry.events import Event
from registry.metrics import EVENTS, WAITING, Metrics
from registry.outbox import Outbox
from registry.receiver import FIRST_DELAY, MOST_WAITING, Receiver
from registry.store.protocol import ObjectStore

_NEVER_MADE = (Refused, NotFound, Malformed)  # errors after which nothing has been changed
_log = logging.getLogger("registry.webhooks")


class Webhooks:
    """The receivers of a configuration. `lease` is for how long, in seconds, a process that says nothing more is
    thought to deliver its events itself."""

    def __init__(
        self, store: ObjectStore, metrics: Metrics, first_delay: float = FIRST_DELAY, lease: float = 30.0
    ) -> None:
        self._outbox = Outbox(store, lease)
        self._metrics = metrics
        self._first_delay = first_delay
        self._lease = lease
        self._source = ""
        self._receivers: dict[Webhook, Receiver] = {}
        self._open: set[str] = set()  # what is written while its request still runs
        self._known: set[str] = set()  # what waits in the memory of a receiver
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closing = False
        self._keeper = threading.Thread(target=self._keep, name="webhooks", daemon=True)

    def configure(self, hooks: Sequence[Webhook], source: str) -> None:
        """Have these receivers; `source` is the registry's URL, as events state it. What waits for a receiver that
        stays goes on waiting. Raises `InvalidInput` if a secret cannot be read; then nothing has changed."""
        fresh = {
            hook: Receiver(hook, source, self._metrics, self._told, self._first_delay)
            for hook in hooks
            if hook not in self._receivers or source != self._source
        }
        gone = [receiver for hook, receiver in self._receivers.items() if hook not in hooks or hook in fresh]
        self._receivers = {hook: fresh[hook] if hook in fresh else self._receivers[hook] for hook in hooks}
        self._source = source
        for receiver in gone:
            self._release(receiver.stop())
        for receiver in fresh.values():
            receiver.thread.start()
        if self._receivers and not self._keeper.is_alive() and not self._closing:
            self._keeper.start()
        self._wake.set()

    def notice(self, principal: str = "anonymous", request_id: str = "") -> Notice:
        """Something that a request of a principal is about to do."""
        return Notice(self, principal, request_id)

    def write(self, event_lists: dict[Receiver, str], events: Sequence[Event]) -> None:
        """Keep what the receivers are to be told of `events`; `event_lists` holds, and gets, the key for each."""
        for receiver in list(self._receivers.values()):
            wanted = [event for event in events if receiver.wants(event)]
            if not wanted:
                continue
            key = event_lists.get(receiver)
            if key is None:
                if len(receiver) >= MOST_WAITING:
                    self._metrics.add(EVENTS, "dropped", amount=len(wanted))
                    receiver.complain(f"has {MOST_WAITING} events waiting for it: further ones are dropped")
                    continue
                key = event_lists[receiver] = self._outbox.new_key(receiver.id)
                with self._lock:
                    self._open.add(key)
            self._outbox.write(key, wanted)

    def hand_over(self, written: dict[Receiver, str]) -> None:
        """What was written has happened: tell the receivers."""
        for receiver, key in written.items():
            self._give(receiver, key)
            with self._lock:
                self._open.discard(key)

    def withdraw(self, written: dict[Receiver, str]) -> None:
        """What was written has not happened."""
        for key in written.values():
            self._forget(key)
            with self._lock:
                self._open.discard(key)

    def _give(self, receiver: Receiver, key: str) -> None:
        with self._lock:
            if key in self._known:
                return
            self._known.add(key)
        self._metrics.add(WAITING)
        if not receiver.put(key, lambda: self._outbox.read(key)):  # configured otherwise meanwhile
            self._release([key])
            self._wake.set()

    def _told(self, key: str) -> None:
        """A receiver has been told, or will not be."""
        self._forget(key)
        self._release([key])

    def _release(self, waiting: Sequence[str]) -> None:
        with self._lock:
            known = self._known.intersection(waiting)
            self._known -= known
        self._metrics.add(WAITING, amount=-len(known))

    def _forget(self, key: str) -> None:
        try:
            self._outbox.remove(key)
        except (StowageError, OSError) as error:
            _log.error("an event that is done with stays in the store, and will be told again: %s", error)

    def close(self, seconds: float = 5.0) -> None:
        """Deliver what waits, each event once more at most, and end, within some seconds. What is left, another
        process takes over."""
        deadline = time.monotonic() + seconds
        self._closing = True
        self._wake.set()
        for receiver in self._receivers.values():
            receiver.finish()
        for receiver in self._receivers.values():
            receiver.thread.join(max(0.0, deadline - time.monotonic()))
        if self._keeper.is_alive():
            self._keeper.join(max(1.0, deadline - time.monotonic()))
        self._quietly(self._outbox.leave if self._known else self._outbox.rest)

    # Leases, and what others have left behind.

    def _keep(self) -> None:
        looked = float("-inf")
        while not self._closing:
            if time.monotonic() - looked >= self._lease:
                self._quietly(self._take_over)
                looked = time.monotonic()
            self._quietly(self._outbox.renew if self._known else self._outbox.rest)
            if self._wake.wait(self._lease / 3 * random.uniform(0.75, 1.0)):  # noqa: S311
                self._wake.clear()
                looked = float("-inf")

    def _quietly(self, work: Callable[[], None]) -> None:
        try:
            work()
        except (StowageError, OSError) as error:
            _log.error("webhook events cannot be looked after now: %s", error)

    def _take_over(self) -> None:
        receivers = {receiver.id: receiver for receiver in self._receivers.values()}
        mine, others = self._outbox.mine()
        for key, _ in mine:
            with self._lock:
                skip = key in self._open or key in self._known
            receiver = receivers.get(key.split("/")[2])
            if not skip and receiver is not None and len(receiver) < MOST_WAITING:
                self._give(receiver, key)
        # What is for a receiver that no configuration names any more is not kept for ever.
        longest = max((hook.keep for hook in self._receivers), default=Webhook.keep)
        for key, modified in (*mine, *others):
            if key.split("/")[2] not in receivers and modified + 2 * longest < time.time():
                self._forget(key)
                self._metrics.add(EVENTS, "expired")


class Notice:
    """What one change will be told of, as a context around making it: if the change is refused, nobody is told."""

    def __init__(self, webhooks: Webhooks, principal: str, request_id: str) -> None:
        self._webhooks = webhooks
        self._principal = principal
        self._request_id = request_id
        self._written: dict[Receiver, str] = {}

    def will(self, *events: Event) -> None:
        """Write down what is about to happen, in place of what was said before. Raises what the store raises."""
        by, id_ = self._principal, self._request_id
        self._webhooks.write(self._written, [replace(event, principal=by, request_id=id_) for event in events])

    def __enter__(self) -> Notice:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After an error of the store it is not known whether the change was made: better told too much than too little.
        if isinstance(error, _NEVER_MADE):
            self._webhooks.withdraw(self._written)
        else:
            self._webhooks.hand_over(self._written)
