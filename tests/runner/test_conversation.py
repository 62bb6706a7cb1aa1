"""``runner run`` in a terminal, as a user types."""

from __future__ import annotations

import json
import os
import pty
import select
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from artifact.errors import InvalidInput
from runner.conversation import setting
from tests.runner.commands import BIN, call, environment, processes_in, wait_until

pytestmark = pytest.mark.engine


class Terminal:
    """A ``runner run`` behind a pseudo-terminal."""

    def __init__(self, store: Path, *arguments: str) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.chdir(store.parent)
            os.execve(BIN / "runner", ["runner", "run", *arguments], environment(store))
        self._shown = b""
        self._status: int | None = None

    def wait_for(self, text: str, seconds: float = 30) -> str:
        """Return what was shown up to `text`, once it is."""
        wanted = text.encode()

        def sees() -> bool:
            if select.select([self.fd], [], [], 0.05)[0]:
                try:
                    self._shown += os.read(self.fd, 65536)
                except OSError as error:
                    raise AssertionError(f"it ended before {text!r}: {self._shown!r}") from error
            return wanted in self._shown

        wait_until(sees, seconds)
        before, _, self._shown = self._shown.partition(wanted)
        return before.decode(errors="replace")

    def type(self, text: str) -> None:
        """Type `text` at the prompt."""
        os.write(self.fd, text.encode())

    def command(self, text: str) -> str:
        """Type a command, and return what is shown until the next prompt."""
        self.type(text + "\n")
        self.wait_for(text.splitlines()[-1] + "\r\n")
        return self.wait_for("\n> ")

    def wait_ended(self) -> int:
        """Its exit status."""
        if self._status is None:
            self._status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._status


@pytest.fixture
def terminal(store: Path, gguf_reference: str) -> Iterator[Terminal]:
    """A conversation at its first prompt."""
    call(store, "pull", gguf_reference)
    started = Terminal(store, gguf_reference)
    started.wait_for("/help shows the commands", 90)
    started.wait_for("\n> ")
    yield started
    os.close(started.fd)
    started.wait_ended()
    wait_until(lambda: not processes_in(store))


def test_a_whole_conversation(terminal: Terminal, store: Path) -> None:
    assert "Ctrl-C stops an answer" in terminal.command("/help")
    assert "there is no command /nonsense" in terminal.command("/nonsense x")
    assert "temperature must be between 0 and 10" in terminal.command("/set temperature hot")
    assert (
        "temperature 0.0, max_tokens 4"
        in (terminal.command("/set temperature 0"), terminal.command("/set max_tokens 4"))[1]
    )
    assert "system: Be brief." in terminal.command("/system Be brief.")

    terminal.type('"""first\n')
    terminal.wait_for("... ")
    terminal.type("second\n")
    terminal.wait_for("... ")
    terminal.type('third"""\n')
    terminal.wait_for('third"""\r\n')
    terminal.wait_for("\n> ")
    terminal.type("one \\\n")
    terminal.wait_for("... ")
    terminal.type("two\n")
    terminal.wait_for("two\r\n")
    terminal.wait_for("\n> ")

    terminal.command("/set max_tokens default")
    terminal.type("Go on for ever\n")
    terminal.wait_for("ever\r\n")
    select.select([terminal.fd], [], [], 5)  # the answer has begun
    terminal.type("\x03")
    terminal.wait_for("(stopped)")
    terminal.wait_for("\n> ")
    terminal.type("dropped\x03")
    terminal.wait_for("Ctrl-D ends the conversation")
    terminal.wait_for("> ")

    assert "saved to talk.json" in terminal.command("/save talk.json")
    assert "exists already" in terminal.command("/save talk.json")
    saved = json.loads((store.parent / "talk.json").read_text())
    assert saved["settings"] == {"temperature": 0.0}
    assert [message["role"] for message in saved["messages"]] == ["system", *("user", "assistant") * 3]
    assert [message["content"] for message in saved["messages"] if message["role"] == "user"] == [
        "first\nsecond\nthird", "one \ntwo", "Go on for ever",
    ]  # fmt: skip
    terminal.command("/clear")
    terminal.command("/save empty.json")
    assert [item["role"] for item in json.loads((store.parent / "empty.json").read_text())["messages"]] == ["system"]

    terminal.type("\x04")
    assert terminal.wait_ended() == 0
    history = store.parent / ".local" / "state" / "stowage" / "run_history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert "/set temperature 0\n" in history.read_text()


@pytest.mark.parametrize(("name", "text"), [("top_p", "1.01"), ("max_tokens", "0"), ("seed", "1.5"), ("seed", "nan")])
def test_settings_that_cannot_be(name: str, text: str) -> None:
    with pytest.raises(InvalidInput, match=name):
        setting(name, text)


def test_settings_are_finite() -> None:
    assert setting("temperature", "0.5") == 0.5
    with pytest.raises(InvalidInput):
        setting("temperature", "nan")
