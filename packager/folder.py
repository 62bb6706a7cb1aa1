"""The files of a checkpoint folder: listed in a fixed order, each shown to be a regular file that belongs to it."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from pathlib import Path

from artifact.errors import Malformed
from artifact.filepath import checked_path
from artifact.manifest import load_json
from packager.content import Content, OnDisk, read
from packager.files import is_filtered_out
from packager.findings import Finding

_MODULES = "modules.json"
"""Names the subfolders of a sentence-transformers model."""

_MAX_MODULES = 1024 * 1024


def list_files(folder: Path, globs: Sequence[str]) -> tuple[dict[str, Content], list[Finding]]:
    """Path in the artifact to content, sorted; and what was left out.

    Listed are the files of the folder itself and of the subfolders its modules.json names. Hidden files and files
    that `globs` leave out are passed over. Raises `Malformed` on a symbolic link that leaves the folder (links of a
    Hugging Face cache into its ``blobs`` do not), and on anything that is not a regular file.
    """
    roots = _roots(folder)
    found: dict[str, Content] = {}
    skipped: list[Finding] = []
    modules = _module_folders(folder, roots)
    for name in sorted(entry.name for entry in folder.iterdir()):
        # A module's files are asked for one by one: no glob that takes in has to name the subfolder itself.
        if name.startswith(".") or is_filtered_out(name, ("*", *globs) if name in modules else globs):
            continue
        path = folder / checked_path(name)
        if path.is_dir():
            if name not in modules:
                skipped.append(Finding("file-skipped", "subfolder, not packed", name))
                continue
            if path.is_symlink():
                raise Malformed(f"{path}: a symbolic link to a folder is not followed")
            for inner in sorted(entry.name for entry in path.iterdir()):
                relative = f"{name}/{inner}"
                if not inner.startswith(".") and not is_filtered_out(relative, globs) and not (path / inner).is_dir():
                    found[checked_path(relative)] = OnDisk(_regular(path / inner, roots))
        else:
            found[name] = OnDisk(_regular(path, roots))
    return found, skipped


def _roots(folder: Path) -> tuple[Path, ...]:
    real = folder.resolve()
    cache = real.parent.parent
    if real.parent.name == "snapshots" and cache.name.startswith("models--"):
        return real, cache / "blobs"
    return (real,)


def _regular(path: Path, roots: tuple[Path, ...]) -> Path:
    if path.is_symlink() and not path.exists():
        raise Malformed(f"{path}: a symbolic link to a file that does not exist")
    real = path.resolve()
    if not any(real.is_relative_to(root) for root in roots):
        raise Malformed(f"{path}: a symbolic link that leaves the checkpoint; put the file itself there")
    if not stat.S_ISREG(real.stat().st_mode):
        raise Malformed(f"{path}: not a regular file")
    return real


def _module_folders(folder: Path, roots: tuple[Path, ...]) -> set[str]:
    path = folder / _MODULES
    if not path.is_symlink() and not path.is_file():
        return set()
    what = str(path)
    raw = read(OnDisk(_regular(path, roots)), _MAX_MODULES, what)
    modules = load_json(b'{"modules":%b}' % raw, what).get("modules")
    if not isinstance(modules, list):
        return set()
    paths = [item.get("path") for item in modules if isinstance(item, dict)]
    return {checked_path(item) for item in paths if isinstance(item, str) and item and "/" not in item}
