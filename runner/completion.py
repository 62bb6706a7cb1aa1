"""What the shell offers for a model's name: those in the store, read from its index alone."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager, redirect_stdout

from artifact import mediatypes
from artifact.errors import StowageError
from artifact.layout import LayoutRepository
from runner.store import Store

_MOST = 200
_ASKED, _WORDS, _AT = "_RUNNER_COMPLETE", "COMP_WORDS", "COMP_CWORD"
_BREAKS = re.compile(r"[:@=]+")


def complete_reference(incomplete: str) -> list[str]:
    """Names of stored models that begin with `incomplete`; none if the store cannot be read."""
    store, names = Store(), set[str]()
    for root in (store.root, store.system):
        try:
            entries = LayoutRepository(root).entries() if root is not None else []
        except (StowageError, OSError):
            continue
        names |= {entry.annotations.get(mediatypes.REF_NAME, "") for entry in entries}
    fitting = {name for name in names if name.startswith(incomplete) and not name.endswith((".sig", ".att", ".sbom"))}
    return sorted(fitting - {""})[:_MOST]


@contextmanager
def whole_words(environment: MutableMapping[str, str]) -> Iterator[None]:
    """Where bash asks for completions: put together the words it has broken at ``:``, ``@`` and ``=``, of which
    references are full, and answer with what comes after the last break, for bash keeps what stands before it."""
    if not environment.get(_ASKED, "").endswith("bash"):
        yield
        return
    words, at = join_words(environment.get(_WORDS, "").split("\n"), int(environment.get(_AT, "0")))
    environment[_WORDS], environment[_AT] = "\n".join(words), str(at)
    breaks = list(_BREAKS.finditer(words[at])) if at < len(words) else []
    answer = io.StringIO()
    try:
        with redirect_stdout(answer):
            yield
    finally:
        for line in answer.getvalue().splitlines():
            print(line[breaks[-1].end() if breaks else 0 :])


def join_words(words: Sequence[str], at: int) -> tuple[list[str], int]:
    """The words of a command line as they were typed, and which of them the cursor is in, from those that bash made of
    them and the number `at` of the one it asks about."""
    joined: list[str] = []
    found, after_break = 0, False
    for number, word in enumerate(words):
        is_break = _BREAKS.fullmatch(word) is not None
        if len(joined) > 1 and (is_break or (after_break and word)):
            joined[-1] += word
        else:
            joined.append(word)
        after_break = is_break
        if number <= at:
            found = len(joined) - 1
    return joined, found + max(0, at - len(words) + 1)
