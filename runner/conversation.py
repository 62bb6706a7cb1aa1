"""A conversation in the terminal: what the user types is a message, or a command that begins with ``/``."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from artifact.errors import InvalidInput, ServerError, StowageError, Unauthorized
from artifact.terminal import note
from runner.chat import answer, connection, show
from runner.plan import Plan
from runner.store import Store

HELP = """\
/help                shows this
/clear               forgets the conversation, not the system message
/system [TEXT]       sets the system message; without TEXT shows it, with "" removes it
/set [NAME VALUE]    temperature, top_p, max_tokens or seed; without NAME shows what is set, VALUE default unsets
/save FILE           writes the conversation to a new file, as JSON
/exit                ends it, and so does Ctrl-D
Ctrl-C stops an answer. A message of several lines stands between \""" and \""", or its lines end with \\."""

_SETTINGS: dict[str, tuple[type[int] | type[float], float, float]] = {
    "temperature": (float, 0.0, 10.0),
    "top_p": (float, 0.0, 1.0),
    "max_tokens": (int, 1, 2**31 - 1),
    "seed": (int, 0, 2**32 - 1),
}
_COMMANDS = ("/help", "/clear", "/system", "/set", "/save", "/exit", "/bye", "/quit")
_QUOTES = '"""'
_MOST_HISTORY = 1000


async def converse(plan: Plan, store: Store, api_key: str = "") -> None:
    """Talk until the user ends it."""
    async with connection(plan, store, api_key) as client:
        note(f"{plan.name} ({plan.found.model.digest.short}): /help shows the commands, Ctrl-D ends")
        conversation = Conversation(plan.talks_as, client)
        with _line_editing(history_path()):
            while (text := _read()) is not None:  # nothing else waits on the loop meanwhile
                if text in ("/exit", "/bye", "/quit"):
                    return
                try:
                    if text.startswith("/"):
                        conversation.obey(text)
                    elif text:
                        await conversation.ask(text)
                except StowageError as error:
                    note(f"error: {error}")


class Conversation:
    """What has been said to the model called `name`, and how it shall answer."""

    def __init__(self, name: str, client: httpx.AsyncClient) -> None:
        self._name = name
        self._client = client
        self._system = ""
        self._messages: list[dict[str, str]] = []
        self._settings: dict[str, int | float] = {}

    @property
    def messages(self) -> list[dict[str, str]]:
        """The messages the model gets."""
        system = [{"role": "system", "content": self._system}] if self._system else []
        return [*system, *self._messages]

    async def ask(self, text: str) -> None:
        """Put a question and print the answer as it comes. Ctrl-C ends the answer: what came of it counts as said.
        Raises `ServerError`, `Unauthorized`; then the question counts as not put."""
        self._messages.append({"role": "user", "content": text})
        pieces: list[str] = []
        try:
            stopped = await _until_interrupted(self._print_answer(pieces))
        except (ServerError, Unauthorized):
            self._messages.pop()
            raise
        print(flush=True)
        if stopped:
            note("(stopped)")
        self._messages.append({"role": "assistant", "content": "".join(pieces)})

    async def _print_answer(self, pieces: list[str]) -> None:
        async for piece in answer(self._client, self._name, self.messages, self._settings):
            pieces.append(piece)
            show(piece)

    def obey(self, text: str) -> None:
        """Carry out a command. Raises `InvalidInput` for one that is none."""
        word, _, rest = text.partition(" ")
        rest = rest.strip()
        if word == "/help":
            note(HELP)
        elif word == "/clear":
            self._messages.clear()
            note("the conversation is forgotten")
        elif word == "/system":
            self._set_system(rest)
        elif word == "/set":
            self._set(rest.split())
        elif word == "/save":
            self._save(rest)
        else:
            raise InvalidInput(f"there is no command {word[:40]}: /help shows them")

    def _set_system(self, text: str) -> None:
        if text:
            self._system = "" if text in ('""', "''") else text
        note(f"system: {self._system or '(none)'}")

    def _set(self, words: list[str]) -> None:
        if words:
            if len(words) != 2 or words[0] not in _SETTINGS:
                raise InvalidInput(f"/set takes a name and a value; the names are {', '.join(_SETTINGS)}")
            self._settings.pop(words[0], None)
            if words[1] != "default":
                self._settings[words[0]] = setting(*words)
        note(", ".join(f"{name} {value}" for name, value in self._settings.items()) or "nothing is set")

    def _save(self, text: str) -> None:
        if not text:
            raise InvalidInput("/save needs the name of a file")
        path = Path(text).expanduser()
        value: dict[str, Any] = {"model": self._name, "settings": self._settings, "messages": self.messages}
        try:
            with path.open("x", encoding="utf-8") as stream:
                json.dump(value, stream, indent=2, ensure_ascii=False)
                stream.write("\n")
        except FileExistsError:
            raise InvalidInput(f"{path} exists already: name another file") from None
        except OSError as error:
            raise InvalidInput(f"cannot write {path}: {error.strerror}") from None
        note(f"saved to {path}")


def setting(name: str, text: str) -> int | float:
    """The value of a setting. Raises `InvalidInput`."""
    kind, least, most = _SETTINGS[name]
    try:
        value = kind(text)
    except ValueError:
        value = kind(-1)
    if not least <= value <= most:
        raise InvalidInput(f"{name} must be between {least:g} and {most:g}, not {text[:40]!r}")
    return value


async def _until_interrupted(work: Any) -> bool:
    """Wait for `work`, or for Ctrl-C, which ends it. Returns whether it was ended."""
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    previous = signal.getsignal(signal.SIGINT)
    loop.add_signal_handler(signal.SIGINT, task.cancel)
    try:
        await task
    except asyncio.CancelledError:
        if not task.cancelled():
            raise
        return True
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        signal.signal(signal.SIGINT, previous)
    return False


def _read() -> str | None:
    """One message of the user, None at the end of input. Ctrl-C drops what was typed."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)  # asyncio's own would only take note
    try:
        while True:
            try:
                return _read_message()
            except KeyboardInterrupt:
                note("\n(Ctrl-D ends the conversation)")
    finally:
        signal.signal(signal.SIGINT, previous)


def _read_message() -> str | None:
    lines: list[str] = []
    quoted = False
    while True:
        try:
            line = input("... " if lines else "> ")
        except EOFError:
            print(flush=True)
            return "\n".join(lines).strip() or None
        if not lines and not quoted and line.lstrip().startswith(_QUOTES):
            quoted, line = True, line.lstrip().removeprefix(_QUOTES)
        if quoted:
            if line.rstrip().endswith(_QUOTES):
                return "\n".join([*lines, line.rstrip().removesuffix(_QUOTES)]).strip("\n")
            lines.append(line)
        elif line.endswith("\\"):
            lines.append(line[:-1])
        else:
            return "\n".join([*lines, line]).strip()


def history_path() -> Path:
    """Where lines typed before are kept: the user's state folder (XDG Base Directory Specification)."""
    state = os.environ.get("XDG_STATE_HOME", "")
    base = Path(state) if state.startswith("/") else Path.home() / ".local" / "state"
    return base / "stowage" / "run_history"


@contextmanager
def _line_editing(history: Path) -> Iterator[None]:
    """Line editing with a history that only the user can read. Where that cannot be, there is none."""
    try:
        import readline
    except ImportError:
        yield
        return
    before = 0
    with suppress(OSError):
        history.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(history, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        history.chmod(0o600)
        readline.read_history_file(history)
        before = readline.get_current_history_length()
    readline.set_history_length(_MOST_HISTORY)
    readline.set_completer_delims(" ")
    readline.set_completer(_complete)
    readline.parse_and_bind("tab: complete")
    try:
        yield
    finally:
        with suppress(OSError):  # appended, because another conversation may have written meanwhile
            readline.append_history_file(readline.get_current_history_length() - before, history)


def _complete(text: str, state: int) -> str | None:
    fitting = [word for word in (*_COMMANDS, *_SETTINGS) if text and word.startswith(text)]
    return fitting[state] if state < len(fitting) else None
