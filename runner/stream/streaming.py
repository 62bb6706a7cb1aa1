"""A model that is served while it still arrives: what is fetched before its engine starts, beside it, and after.

First whole and verified as in any pull: the manifest on which the policy decided, every file that is not weights, the
tensor index, and the headers of the weight files, which must agree with the tag. Then the engine may start. Its folder
holds the weight files at their full length, and it asks over a socket for the parts it wants to read. When all files
have their names in the store, the manifest gets its own, as after a pull.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from artifact.errors import InvalidInput, Malformed, NotFound, Refused, StowageError
from artifact.layout import LayoutRepository
from artifact.layout.blobs import Blobs
from artifact.progress import Progress, Quiet
from artifact.source import RangedSource
from artifact.tensorindex import FileIndex, TensorIndex
from artifact.tensorindex.attach import index_digest, read_index
from artifact.terminal import note
from artifact.transfer import CONCURRENCY, copy_blobs
from runner.check import check_files
from runner.delta import local_chunks
from runner.engines.vllm import STREAM_SOCKET
from runner.model import ModelFile
from runner.pull import Found, fetch
from runner.store import Store, clone_or_copy
from runner.stream.filling import Filling
from runner.stream.incoming import Incoming
from runner.stream.server import Server

_PATIENCE = 5.0


class Streaming:
    """A found model on its way into `store`, begun by `begin`. It answers engines until it is closed."""

    def __init__(self, found: Found, store: Store, filling: Filling, held: ExitStack, pulling: ExitStack) -> None:
        self._found, self._store, self._filling = found, store, filling
        self._held, self._pulling = held, pulling
        self._weights = {file.path: file for file in _streamed(found)}
        self._server: Server | None = None
        self._began = time.monotonic()
        self._complete = threading.Event()
        self._failure: StowageError | None = None
        self._finisher = threading.Thread(target=self._finish, name="stream-hash", daemon=True)

    @classmethod
    def begin(cls, found: Found, store: Store, progress: Progress) -> Streaming:
        """Fetch what an engine needs to start, and begin to fetch the rest. Raises as `fetch` and `check_streamable`
        do, `NotFound` if the tensor index is not beside the model, and `StowageError` for a registry without ranges."""
        try:
            return cls._begin(found, store, progress)
        except StowageError as error:
            _discard(found, store, error)
            raise

    @classmethod
    def _begin(cls, found: Found, store: Store, progress: Progress) -> Streaming:
        weights = _streamed(found)
        index = _index(found)
        target = LayoutRepository(store.root)
        with ExitStack() as held:
            pulling = held.enter_context(ExitStack())
            pulling.enter_context(store.pulling())
            large = {file.blob.digest for file in weights}
            small = [blob for blob in found.model.manifest.blobs if blob.digest not in large]
            copy_blobs(found.origin, target, small, progress, CONCURRENCY)
            filling = Filling(_incoming(found, store, index), target)
            held.callback(filling.close)
            self = cls(found, store, filling, held, pulling)
            filling.start()
            for file in reversed(weights):  # what nobody waits for goes on from the last one asked for: the first
                self.wait(file.path, 0, _data_start(_of(index, file)))
            check_files(found.model, found.reference.tag, self._path, found.grant.configs)
            self._held = held.pop_all()
        self._finisher.start()
        return self

    def place(self, folder: Path) -> tuple[Path, dict[str, Path]]:
        """The model's files laid out in `folder`, weight files at their full length whatever is there of them, and
        what else an engine has to reach: the socket, by its place where the engine runs. Made once."""
        bundle = folder / "streams" / self._found.model.digest.hex
        if self._server is None:
            for file in self._found.model.files:
                (bundle / file.path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._link(file, bundle / file.path)
            self._server = Server(bundle.with_suffix(".sock"), self.wait)
        return bundle, {STREAM_SOCKET: bundle.with_suffix(".sock")}

    def wait(self, path: str, start: int, end: int) -> None:
        """Return when the bytes from `start` up to `end` of a weight file are there and proven. Raises
        `StowageError`."""
        if self._failure is not None:
            raise self._failure
        file = self._weights.get(path)
        if file is None:
            raise NotFound(f"the model has no weight file {path[:80]!r} that is streamed")
        self._filling.wait(file.blob, start, end)

    def completed(self) -> None:
        """Return when the model is whole in the store. Raises `StowageError` if it cannot be: then no engine may go on
        with it."""
        self._complete.wait()
        if self._failure is not None:
            raise self._failure

    @property
    def is_complete(self) -> bool:
        """Whether everything has arrived, or the model cannot be had."""
        return self._complete.is_set()

    @property
    def failure(self) -> StowageError | None:
        """Why the model cannot be had, if that has turned out."""
        return self._failure or self._filling.failure

    def close(self) -> None:
        """Let go of everything. What has arrived is kept for the next pull."""
        if self._server is not None:
            self._server.close()
        self._filling.stop()
        self._finisher.join(_PATIENCE)
        if not self._finisher.is_alive():
            self._held.close()  # else it may still write; the files are let go when this process ends

    def _path(self, file: ModelFile) -> Path:
        final = self._store.blob(file.blob.digest)
        return final if final.is_file() else Blobs(self._store.root).partial(file.blob.digest)

    def _link(self, file: ModelFile, target: Path, *, again: bool = True) -> None:
        try:
            os.link(self._path(file), target)
        except FileNotFoundError:
            if not again:
                raise
            self._link(file, target, again=False)  # it has just got its name
        except OSError as error:  # EPERM: a file system without links, or a file of another user
            if error.errno not in (errno.EXDEV, errno.EPERM):
                raise
            if not self._store.blob(file.blob.digest).is_file():
                raise StowageError(
                    f"{file.path}: {self._store.root} cannot link files ({error.strerror}), so nothing can be loaded "
                    "while it arrives: leave --stream away"
                ) from None
            clone_or_copy(self._store.blob(file.blob.digest), target)

    def _finish(self) -> None:
        try:
            self._filling.finish()
            self._pulling.close()  # what follows holds the store by itself
            seconds = time.monotonic() - self._began
            note(f"streamed {self._found.reference}: {self._filling.arrived:,} bytes of weights, {seconds:.1f} s")
            self._keep()
        except StowageError as error:
            self._failure = error
            self._complete.set()
            self._pulling.close()
            _discard(self._found, self._store, error)
        except Exception as error:  # whoever waits must hear of it
            self._failure = StowageError(f"{self._found.reference}: {type(error).__name__}: {error}")
        finally:
            self._complete.set()

    def _keep(self) -> None:
        """Give the model its name in the store. Raises `Refused` or `Malformed` if it must not be used after all."""
        try:
            fetch(self._found, self._store, Quiet())
        except (Refused, Malformed):
            raise
        except StowageError as error:
            note(f"warning: {error}: {self._found.reference} is served, but has no name in the store: runner pull it")


def check_streamable(found: Found, engine: str) -> None:
    """Whether a found model can be streamed. Raises `InvalidInput`, saying what is missing."""
    reference, instead = found.reference, "leave --stream away, or runner pull it first"
    if engine != "vllm" or found.model.config.format != "safetensors":
        raise InvalidInput(f"--stream is for safetensors on vLLM, and {reference} runs on {engine}: leave it away")
    if found.stored:
        return  # nothing will be streamed
    if index_digest(found.model.manifest) is None:
        raise InvalidInput(
            f"{reference} has no tensor index to prove its parts by (it was packed without one): {instead}"
        )
    if not _streamed(found):
        raise InvalidInput(f"{reference} has no weight files at its top level: {instead}")
    if not all(isinstance(found.origin.blob_source(file.blob), RangedSource) for file in _streamed(found)):
        raise InvalidInput(f"--stream reads from a registry, and {reference} is a folder on this host: leave it away")


def _streamed(found: Found) -> Sequence[ModelFile]:
    """The weight files that vLLM loads itself; those in folders (of pooling modules) are fetched before."""
    files = {file.path: file for file in found.model.files}
    return [files[path] for path in found.model.weights if "/" not in path]


def _index(found: Found) -> TensorIndex:
    read = read_index(found.origin, found.model.manifest)
    if read is None:
        raise InvalidInput(f"{found.reference} has no tensor index: leave --stream away")
    return read[0]


def _incoming(found: Found, store: Store, index: TensorIndex) -> list[Incoming]:
    """What has to be fetched: each blob once, whatever it is called in the model, and not those that are here."""
    files = {file.blob.digest: file for file in _streamed(found)}
    missing = [file for digest, file in files.items() if not store.blob(digest).is_file()]
    blobs = tuple(file.blob for file in missing)
    local = local_chunks(store, store.repository(found.reference), blobs, index)
    return [
        Incoming(_of(index, file), file.blob, source, local)
        for file in missing
        if isinstance(source := found.origin.blob_source(file.blob), RangedSource)
    ]


def _discard(found: Found, store: Store, error: StowageError) -> None:
    """What is refused leaves nothing."""
    if isinstance(error, (Refused, Malformed)):
        store.discard(found.model.manifest.blobs)


def _of(index: TensorIndex, file: ModelFile) -> FileIndex:
    """What an index says of a file. Raises `Malformed` if it says nothing."""
    found = index.file(file.blob.digest)
    if found is None:
        raise Malformed(f"the tensor index does not speak of {file.path}: serve it without --stream")
    return found


def _data_start(file: FileIndex) -> int:
    return min((tensor.offset for tensor in file.tensors), default=file.size)
