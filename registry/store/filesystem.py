"""The folder driver: an object is a file.

Small objects are written to a temporary file, synced and linked or renamed into place, so that a crash leaves the old
object or the new one. Conditions hold between processes: creation rests on link(2), replacement on an advisory lock.
The folder must be on a file system where both work.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from artifact.writeback import begin_writing
from registry.store.protocol import Busy, Conflict, Entry, Missing, Object, Stream, Unfinished, Writer, checked_key

_LOCKS = 64
_IOV_MAX = 1024
_COPY = 16 * 1024 * 1024  # bytes copied at a time
_NO_COPY = (errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP)  # of file systems without copy_file_range(2)
_WRITE_BACK = 1024 * 1024  # bytes of one write that are sent on their way to the disk at once


class FilesystemStore:
    """Objects as files under one folder, which is created."""

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()
        self._temporary = self._root / ".tmp"
        self._locks = self._root / ".locks"
        for folder in (self._root, self._temporary, self._locks):
            folder.mkdir(parents=True, exist_ok=True, mode=0o750)

    @property
    def place(self) -> str:
        return str(self._root)

    @property
    def remote(self) -> bool:
        return False

    @property
    def chunk(self) -> int:
        return 0

    def _path(self, key: str) -> Path:
        return self._root / checked_key(key)

    def get(self, key: str) -> Object:
        try:
            data = self._path(key).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise Missing(f"no object {key}") from None
        return Object(data, _etag(data))

    def head(self, key: str) -> Entry:
        try:
            stat = self._path(key).stat()
        except (FileNotFoundError, NotADirectoryError):
            raise Missing(f"no object {key}") from None
        return Entry(key, stat.st_size, stat.st_mtime)

    def put(
        self, key: str, data: bytes | memoryview, *, if_match: str | None = None, if_none_match: bool = False
    ) -> str:
        path = self._path(key)
        temporary = self._temporary / secrets.token_hex(16)
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if if_none_match:
                self._place(path, lambda: os.link(temporary, path))
            else:
                with self._locked(key):
                    self._check(key, if_match)
                    self._place(path, lambda: temporary.replace(path))
        except FileExistsError:
            raise Conflict(f"object {key} exists") from None
        finally:
            temporary.unlink(missing_ok=True)
        return _etag(data)

    def _place(self, path: Path, move: Any) -> None:
        for _ in range(50):  # a delete may remove the emptied folder between making and using it
            _make_folders(path.parent)
            try:
                move()
            except FileNotFoundError:
                continue
            _sync_folder(path.parent)
            return
        raise OSError(f"{path.parent}: cannot be created")

    def delete(self, key: str, *, if_match: str | None = None) -> None:
        path = self._path(key)
        with self._locked(key):
            self._check(key, if_match)
            try:
                path.unlink()
            except (FileNotFoundError, NotADirectoryError):
                return
            _sync_folder(path.parent)
        for parent in path.parents:
            if parent == self._root:
                return
            try:
                parent.rmdir()
            except OSError:
                return

    def _check(self, key: str, if_match: str | None) -> None:
        if if_match is None:
            return
        try:
            current = self.get(key).etag
        except Missing:
            current = ""
        if current != if_match:
            raise Conflict(f"object {key} is no longer the one that was read")

    @contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        stripe = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=4).digest(), "big") % _LOCKS
        descriptor = os.open(self._locks / f"{stripe:02}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def list(self, prefix: str, *, start_after: str = "", limit: int = 1000) -> list[Entry]:
        entries: list[Entry] = []
        folder = prefix.rpartition("/")[0]
        for entry in self._walk(checked_key(folder) + "/" if folder else "", prefix, start_after):
            if len(entries) == limit:
                break
            entries.append(entry)
        return entries

    def _walk(self, folder: str, prefix: str, start_after: str) -> Iterator[Entry]:
        """Depth first, by name within a folder; subtrees wholly before `start_after` are not entered."""
        after = tuple(start_after.split("/")) if start_after else ()
        depth = folder.count("/")
        try:
            found = sorted(os.scandir(self._root / folder), key=lambda item: item.name)
        except (FileNotFoundError, NotADirectoryError):
            return
        for item in found:
            key = folder + item.name
            if item.name.startswith(".") or not (key.startswith(prefix) or prefix.startswith(key + "/")):
                continue
            path = tuple(key.split("/"))
            if path < after[: depth + 1]:
                continue
            if item.is_dir(follow_symlinks=False):
                yield from self._walk(key + "/", prefix, start_after)
            elif path > after:
                with suppress(FileNotFoundError):
                    stat = item.stat()
                    yield Entry(key, stat.st_size, stat.st_mtime)

    def read(self, key: str, offset: int, length: int) -> Stream:
        try:
            descriptor = os.open(self._path(key), os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            raise Missing(f"no object {key}") from None
        return _FileStream(descriptor, offset, length)

    def writer(
        self,
        key: str,
        *,
        scratch: str,
        offset: int = 0,
        state: dict[str, Any] | None = None,
        expected: int | None = None,
    ) -> Writer:
        return _FileWriter(self._path(key), offset, self._path)

    def unfinished(self) -> Sequence[Unfinished]:
        found = []
        for item in os.scandir(self._temporary):
            with suppress(FileNotFoundError):
                found.append(Unfinished("", item.name, item.stat(follow_symlinks=False).st_mtime))
        return found

    def drop_unfinished(self, item: Unfinished) -> None:
        (self._temporary / item.id).unlink(missing_ok=True)

    def presign(self, key: str, seconds: int) -> str | None:
        return None


class _FileStream:
    def __init__(self, descriptor: int, offset: int, length: int) -> None:
        self._descriptor = descriptor
        self._offset = offset
        self._end = offset + length
        self._open = True

    def read(self, count: int) -> bytes:
        data = os.pread(self._descriptor, min(count, self._end - self._offset), self._offset)
        self._offset += len(data)
        return data

    def readinto(self, view: memoryview) -> int:
        count = os.preadv(self._descriptor, [view[: self._end - self._offset]], self._offset)
        self._offset += count
        return count

    def descriptor(self) -> tuple[int, int] | None:
        return self._descriptor, self._offset

    def close(self) -> None:
        if self._open:
            self._open = False
            os.close(self._descriptor)


class _FileWriter:
    """A growing file, locked while one request writes to it. Bytes past `offset` are leftovers of a request that
    died; they are cut off by the first write and not before, when the caller has made sure that it holds the state
    that counts."""

    def __init__(self, path: Path, offset: int, path_of: Callable[[str], Path]) -> None:
        self._path = path
        self._path_of = path_of
        self._offset = self._safe = offset
        self._positioned = False
        # A request that is given up may close the file while a thread still writes: never into a reused descriptor.
        self._guard = threading.RLock()
        _make_folders(path.parent)
        create = os.O_CREAT if offset == 0 else 0
        try:
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | create, 0o640)
        except FileNotFoundError:
            raise Missing(f"upload {path.name}: bytes that were received are gone") from None
        try:
            _flock(self._descriptor, path.name)
            if os.fstat(self._descriptor).st_size < offset:
                raise Missing(f"upload {path.name}: bytes that were received are gone")
        except BaseException:
            self.close()
            raise

    def write(self, chunks: Sequence[bytes | memoryview]) -> None:
        with self._growing():
            self._write(chunks)

    def copyable(self, length: int) -> tuple[int, int]:
        return 0, min(length, _COPY)

    def copy(self, key: str, offset: int, length: int) -> None:
        with self._growing():
            try:
                source = os.open(self._path_of(key), os.O_RDONLY | os.O_CLOEXEC)
            except (FileNotFoundError, NotADirectoryError):
                raise Missing(f"no object {key}") from None
            try:
                while length:
                    count = _copy_range(source, offset, self._descriptor, self._offset, length)
                    if not count:
                        raise Missing(f"object {key} is shorter than it should be")
                    self._offset += count
                    offset, length = offset + count, length - count
            finally:
                os.close(source)

    @contextmanager
    def _growing(self) -> Iterator[None]:
        """While bytes are added, which then are sent on their way to the disk."""
        with self._guard:
            try:
                self._position()
                begin = self._offset
                yield
                if self._offset - begin >= _WRITE_BACK:
                    begin_writing(self._descriptor, begin, self._offset - begin)
            except OSError:
                # A full disk: give back what this request has taken, so that there is room to record anything at all.
                with suppress(OSError):
                    os.ftruncate(self._descriptor, self._safe)
                self._offset = self._safe
                raise

    def _write(self, chunks: Sequence[bytes | memoryview]) -> None:
        for first in range(0, len(chunks), _IOV_MAX):
            views = [memoryview(chunk) for chunk in chunks[first : first + _IOV_MAX]]
            while views:
                written = os.pwritev(self._descriptor, views, self._offset)
                self._offset += written
                while views and written >= len(views[0]):
                    written -= len(views.pop(0))
                if views and written:
                    views[0] = views[0][written:]

    def _position(self) -> None:
        if not self._positioned:
            os.ftruncate(self._descriptor, self._offset)
            self._positioned = True

    @property
    def loose(self) -> int:
        return 0

    def checkpoint(self) -> dict[str, Any]:
        with self._guard:
            self._position()
            os.fdatasync(self._descriptor)
            self._safe = self._offset
        return {}

    def saved(self) -> None:
        pass

    def seal(self) -> dict[str, Any]:
        with self._guard:
            self._position()
            os.fsync(self._descriptor)
        _sync_folder(self._path.parent)
        return {}

    def complete(self) -> None:
        mine = os.fstat(self._descriptor)
        try:
            named = self._path.stat()
        except FileNotFoundError:
            named = None
        if named is None or not os.path.samestat(mine, named) or mine.st_size != self._offset:
            raise Missing(f"upload {self._path.name}: bytes that were received are gone")

    def close(self) -> None:
        with self._guard:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1

    def abort(self) -> None:
        self._path.unlink(missing_ok=True)
        self.close()


def _copy_range(source: int, offset: int, target: int, at: int, length: int) -> int:
    """Copy some of `length` bytes between two files, by the file system itself where it can: it may share them. How
    many; 0 at the end of the source."""
    try:
        return os.copy_file_range(source, target, length, offset, at)
    except OSError as error:
        if error.errno not in _NO_COPY:
            raise
    return os.pwrite(target, os.pread(source, min(length, _WRITE_BACK), offset), at)


def _flock(descriptor: int, name: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Busy(f"upload {name} is being written by another request") from None


def _etag(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


def _make_folders(folder: Path) -> None:
    """Make a folder and its parents, each entry synced into the folder above it."""
    if folder.is_dir():
        return
    _make_folders(folder.parent)
    with suppress(FileExistsError, FileNotFoundError):
        folder.mkdir(mode=0o750)
        _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
