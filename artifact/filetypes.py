"""What a file's name says about the danger in it: the lists that packing and running share. No file is opened here."""

from __future__ import annotations

from pathlib import PurePosixPath

SOURCE_SUFFIXES = frozenset((".py", ".pyi", ".ipynb"))
"""Python source: the one kind of code an artifact may carry, in layers of its own, where that was allowed by name."""

CODE_SUFFIXES = SOURCE_SUFFIXES | {
    ".pyc", ".pyo", ".pyd", ".so", ".dll", ".dylib", ".sh", ".bat", ".exe", ".jar", ".wasm",
}  # fmt: skip
"""Everything that is code."""

PICKLE_SUFFIXES = frozenset((".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill"))
"""Under these names pickles are kept."""

UNSAFE_WEIGHT_SUFFIXES = PICKLE_SUFFIXES | {".npy", ".npz", ".h5", ".keras", ".mar", ".nemo", ".pdparams"}
"""Formats of weights that can run code when they are loaded."""


def suffix_of(path: str) -> str:
    """The file name's extension in lower case, with its dot; a name that is nothing but one counts as one."""
    name = PurePosixPath(path).name.lower()
    return f".{name.rpartition('.')[2]}" if "." in name else ""


def is_source_name(path: str) -> bool:
    """Whether the name is that of Python source."""
    return suffix_of(path) in SOURCE_SUFFIXES


def is_code_name(path: str) -> bool:
    """Whether the name is that of code of any kind."""
    return suffix_of(path) in CODE_SUFFIXES


def is_pickle_name(path: str) -> bool:
    """Whether the name is one under which pickles are kept."""
    return suffix_of(path) in PICKLE_SUFFIXES


def is_unsafe_weight_name(path: str) -> bool:
    """Whether the name is that of weights in a format that can run code when it is loaded."""
    return suffix_of(path) in UNSAFE_WEIGHT_SUFFIXES
