"""Results for people: a line for each artifact as it is looked at, and the counts at the end."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from supplychain.audit.record import Record, Status
from supplychain.audit.tally import Tally, verdict

_COLOURS = {
    Status.SIGNED: "green", Status.REVOKED: "bold red", Status.INVALID: "bold red", Status.EXPIRED: "red",
    Status.UNKNOWN: "yellow", Status.UNSUPPORTED: "yellow", Status.UNSIGNED: "yellow", Status.BROKEN: "bold red",
}  # fmt: skip
_VERDICTS = {"allowed": "green", "warned": "yellow", "refused": "red", "none": "dim"}


class Table:
    """Prints to `console`: in colours and with a table of counts on a terminal, plainly elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._print("STATUS", "VERDICT", "CODE", "REFERENCE", "bold", "bold")

    def add(self, record: Record) -> None:
        word = verdict(record)
        reference = str(record.subject)
        if record.decision is None:
            reference += f"  ({record.reason})"
        elif names := [signer["name"] for signer in record.decision.to_json()["signers"]]:
            reference += f"  (signed by {', '.join(names)})"
        self._print(record.status.value, word, record.code, reference, _COLOURS[record.status], _VERDICTS[word])

    def end(self, tally: Tally) -> None:
        if self._console.is_terminal:
            counts = RichTable("status", "artifacts", title="Audited")
            for status in Status:
                if tally.count(status):
                    counts.add_row(Text(status.value, _COLOURS[status]), str(tally.count(status)))
            self._console.print(counts)

    def _print(self, status: str, word: str, code: str, reference: str, colour: str, judged: str) -> None:
        # Names and messages come from elsewhere: nothing in them may steer the terminal.
        shown = "".join(char if char.isprintable() else " " for char in reference)
        line = Text.assemble((f"{status:<12}", colour), (f"{word:<9}", judged), f"{code:<24}  ", shown)
        self._console.print(line, soft_wrap=True, highlight=False)
