"""Collecting while the registry serves: a thread of its own, which blocks nobody."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from artifact.errors import StowageError
from registry.gc.collector import DEFAULT_GRACE, Collector
from registry.gc.lease import LeaseHeld
from registry.gc.report import Report
from registry.store.protocol import ObjectStore

_log = logging.getLogger("registry.gc")


class BackgroundCollector:
    """Runs a cycle each `interval` seconds, or none if that is 0. Of several processes over one store, the lease lets
    one collect at a time. `observe` is called with each report, in the collector's thread."""

    def __init__(
        self,
        store: ObjectStore,
        interval: float,
        *,
        grace: float = DEFAULT_GRACE,
        untagged: bool = False,
        observe: Callable[[Report], None] = lambda report: None,
    ) -> None:
        self._store = store
        self._interval = interval
        self._grace = grace
        self._untagged = untagged
        self._observe = observe
        self._stop = threading.Event()
        self._changed = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="gc", daemon=True)

    def start(self) -> None:
        """Begin; the first cycle comes after one interval."""
        self._thread.start()

    def stop(self) -> None:
        """End at the next step of a running cycle; what it has done so far stands."""
        self._stop.set()
        self._changed.set()
        self._thread.join(timeout=10)

    def configure(self, interval: float, grace: float) -> None:
        """Collect at another interval from now on, and with another grace period from the next cycle on."""
        if (interval, grace) != (self._interval, self._grace):
            self._interval, self._grace = interval, grace
            self._changed.set()

    def _loop(self) -> None:
        while not self._stop.is_set():
            if self._changed.wait(self._interval or None):
                self._changed.clear()
                continue
            collector = Collector(self._store, grace=self._grace, untagged=self._untagged)
            try:
                for _ in collector.steps():
                    if self._stop.is_set():
                        return
            except LeaseHeld as error:
                _log.info("%s", error)
                continue
            except (StowageError, OSError) as error:
                _log.error("collecting stopped: %s", error)
                continue
            except Exception:
                _log.exception("collecting stopped")
                continue
            _log.info("%s", collector.report.to_text())
            self._observe(collector.report)
