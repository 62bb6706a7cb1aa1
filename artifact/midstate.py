"""SHA-256 that can be put down in one process and taken up in another.

`hashlib` has no way to save a running hash, so this drives the same library's own SHA256_CTX through ctypes, which
releases the interpreter lock and runs at full speed. Where the library does not export it, `supported` is False and
uploads are hashed again from the stored bytes when they are closed.
"""

from __future__ import annotations

import ctypes
import hashlib
from functools import cache
from typing import Any

_LIBRARIES = ("libcrypto.so.3", "libcrypto.so.1.1", "libcrypto.3.dylib")


class _Context(ctypes.Structure):
    _fields_ = (
        ("h", ctypes.c_uint32 * 8),
        ("low", ctypes.c_uint32),
        ("high", ctypes.c_uint32),
        ("data", ctypes.c_uint8 * 64),
        ("pending", ctypes.c_uint),
        ("length", ctypes.c_uint),
        ("reserve", ctypes.c_uint8 * 64),  # room for a library whose structure is larger than the one known
    )


class ResumableSha256:
    """A running SHA-256 with the interface of `hashlib`'s, whose `state` is text for `resume`."""

    def __init__(self) -> None:
        library = _library()
        if library is None:
            raise RuntimeError("this platform's libcrypto does not export SHA256_Init")
        self._library = library
        self._context = _Context()
        self._library.SHA256_Init(ctypes.byref(self._context))

    @classmethod
    def resume(cls, state: str) -> ResumableSha256:
        """Continue from `state`. Raises `ValueError` if it is not one."""
        raw = bytes.fromhex(state)
        pending = int.from_bytes(raw[32:40], "big") % 64
        if len(raw) != 40 + pending:
            raise ValueError("not a saved hash state")
        self = cls()
        context = self._context
        for index in range(8):
            context.h[index] = int.from_bytes(raw[4 * index : 4 * index + 4], "big")
        bits = int.from_bytes(raw[32:40], "big") * 8
        context.low, context.high, context.pending = bits & 0xFFFFFFFF, bits >> 32, pending
        ctypes.memmove(context.data, raw[40:], pending)
        return self

    def update(self, data: bytes | bytearray | memoryview, /) -> None:
        """Hash further bytes."""
        size = data.nbytes if isinstance(data, memoryview) else len(data)
        if isinstance(data, bytes):
            start: Any = data
        elif size and not memoryview(data).readonly:
            start = (ctypes.c_char * size).from_buffer(data)  # in place: a copy would cost as much as the hash
        else:
            start = bytes(data)
        self._library.SHA256_Update(ctypes.byref(self._context), start, size)

    def hexdigest(self) -> str:
        """The digest so far."""
        context = _Context()
        ctypes.memmove(ctypes.byref(context), ctypes.byref(self._context), ctypes.sizeof(_Context))
        result = ctypes.create_string_buffer(32)
        self._library.SHA256_Final(result, ctypes.byref(context))
        return result.raw.hex()

    def state(self) -> str:
        """Eight words, the count of bytes hashed and the bytes of an unfinished block, in hexadecimal."""
        context = self._context
        words = b"".join(int(word).to_bytes(4, "big") for word in context.h)
        count = (int(context.high) << 32 | int(context.low)) // 8
        return (words + count.to_bytes(8, "big") + bytes(context.data[: context.pending])).hex()


def supported() -> bool:
    """Whether `ResumableSha256` works here."""
    return _library() is not None


@cache
def _library() -> Any:
    """A libcrypto that gives the right answers through a save in mid-block, or None."""
    for name in _candidates():
        try:
            library = ctypes.CDLL(name)
            for function in (library.SHA256_Init, library.SHA256_Final):
                function.restype = ctypes.c_int
            library.SHA256_Update.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
            library.SHA256_Update.restype = ctypes.c_int
        except (OSError, AttributeError):
            continue
        if _agrees(library):
            return library
    return None


def _candidates() -> list[str]:
    try:
        import _hashlib
    except ImportError:
        return list(_LIBRARIES)
    return [_hashlib.__file__, *_LIBRARIES]  # through the extension module the library it is linked with is found


def _agrees(library: Any) -> bool:
    context, result = _Context(), ctypes.create_string_buffer(32)
    library.SHA256_Init(ctypes.byref(context))
    library.SHA256_Update(ctypes.byref(context), b"x" * 100, 100)
    if (context.low, context.high, context.pending) != (800, 0, 36):
        return False
    library.SHA256_Final(result, ctypes.byref(context))
    return result.raw == hashlib.sha256(b"x" * 100).digest()
