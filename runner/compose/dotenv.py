"""The ``.env`` file beside a Compose file: read for its variables, and one marked block in it written.

Source: Compose documentation, "Env file syntax". Everything outside the block stays as it is, byte for byte.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Mapping
from pathlib import Path

from artifact.errors import InvalidInput
from artifact.layout.files import write_atomically
from runner.compose.interpolation import interpolate

BEGIN = "# >>> stowage runner: written by `runner up`, do not edit >>>"
END = "# <<< stowage runner <<<"
_MAX_BYTES = 1024 * 1024
_ASSIGNMENT = re.compile(r"(?:export[ \t]+)?([A-Za-z_][A-Za-z0-9_.-]*)[ \t]*=[ \t]*(.*)", re.DOTALL)
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", '"': '"', "\\": "\\", "$": "$$"}
_PLAIN = re.compile(r"[A-Za-z0-9_.,:/@+=-]*")


def read(path: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of an ``.env`` file; none if there is no file. Those of `environment` and those above can be used
    in a value. Raises `InvalidInput` with the line."""
    return parse(_text(path), str(path), environment)


def parse(text: str, name: str, environment: Mapping[str, str]) -> dict[str, str]:
    """The variables in the text of an ``.env`` file. Raises `InvalidInput`."""
    found: dict[str, str] = {}
    lines = text.splitlines()
    at = 0
    while at < len(lines):
        number, line = at + 1, lines[at].strip()
        at += 1
        if not line or line.startswith("#"):
            continue
        match = _ASSIGNMENT.fullmatch(line)
        if match is None:
            raise InvalidInput(f"{name}:{number}: not a variable: write NAME=value")
        key, value = match[1], match[2]
        quote = value[:1]
        if quote and quote in "'\"":
            while _closing_quote(value) < 0:  # a quoted value may go over several lines
                if at >= len(lines):
                    raise InvalidInput(f"{name}:{number}: the quote of {key} is not closed")
                value += "\n" + lines[at]
                at += 1
        try:
            found[key] = _unquoted(value, {**found, **environment})
        except InvalidInput as error:
            raise InvalidInput(f"{name}:{number}: {error}") from None
    return found


def _closing_quote(value: str) -> int:
    at = 1
    while at < len(value):
        if value[at] == "\\" and value[0] == '"':
            at += 2
            continue
        if value[at] == value[0]:
            return at
        at += 1
    return -1


def _unquoted(value: str, variables: Mapping[str, str]) -> str:
    quote = value[:1]
    if quote and quote in "'\"":
        end = _closing_quote(value)
        rest = value[end + 1 :].strip()
        if rest and not rest.startswith("#"):
            raise InvalidInput("nothing but a comment may follow a quoted value")
        inner = value[1:end]
        if quote == "'":
            return inner
        unescaped = re.sub(r"\\(.)", lambda match: _ESCAPES.get(match[1], match[0]), inner, flags=re.DOTALL)
        return interpolate(unescaped, variables)
    bare = re.sub(r"(?:^|[ \t]+)#.*", "", value).strip()
    return interpolate(bare, variables)


def write_block(path: Path, variables: Mapping[str, str]) -> bool:
    """Put `variables` into our block of the file, in the order of their names, or remove the block where there are
    none. The rest is left as it is. Returns whether the file changed."""
    before = _text(path)
    after = with_block(before, variables, str(path))
    if after == before:
        return False
    target = path.resolve()  # a link stays a link
    mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else 0o644
    write_atomically(target, after.encode(), mode)
    return True


def with_block(text: str, variables: Mapping[str, str], name: str = ".env") -> str:
    """`text` with our block holding `variables`. Raises `InvalidInput` if the block's marks are damaged."""
    lines = text.splitlines(keepends=True)
    begins = [at for at, line in enumerate(lines) if line.strip() == BEGIN]
    ends = [at for at, line in enumerate(lines) if line.strip() == END]
    if len(begins) > 1 or len(begins) != len(ends) or (begins and begins[0] > ends[0]):
        raise InvalidInput(f"{name}: the marks of the block that runner up writes are damaged: remove them")
    block = "".join(f"{line}\n" for line in (BEGIN, *map(_assignment, sorted(variables.items())), END))
    if not variables:
        block = ""
    if begins:
        return "".join([*lines[: begins[0]], block, *lines[ends[0] + 1 :]])
    if block and text and not text.endswith("\n"):
        text += "\n"
    return text + block


def _assignment(item: tuple[str, str]) -> str:
    name, value = item
    if _PLAIN.fullmatch(value):
        return f"{name}={value}"
    if "'" in value or "\n" in value:
        raise InvalidInput(f"{name} cannot be written into an .env file: {value[:80]!r}")
    return f"{name}='{value}'"


def _text(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            raw = stream.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise InvalidInput(f"cannot read {path}: {error.strerror}") from None
    if len(raw) > _MAX_BYTES:
        raise InvalidInput(f"{path} is larger than {_MAX_BYTES} bytes")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidInput(f"{path} is not UTF-8 text") from None
