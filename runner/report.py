"""What the runner tells about models and runs: tables for people, JSON for scripts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from artifact.terminal import note, print_json
from artifact.weights.precision import size_label
from runner.state import Run
from runner.store import StoredModel
from supplychain.refusal import Reason

if TYPE_CHECKING:
    from supplychain.decision import Decision


def print_models(models: Sequence[StoredModel], *, as_json: bool) -> None:
    """The models in the store."""
    if as_json:
        print_json([model.to_json() for model in models])
        return
    if not models:
        note("the store is empty (runner pull fetches models)")
    rows = [
        (
            item.name or "-",
            item.model.digest.short,
            item.model.config.format,
            item.model.config.precision or "-",
            size_label(item.model.config.parameters) if item.model.config.parameters else "-",
            human_bytes(item.model.size),
            verified_by(item.record),
        )
        for item in models
    ]
    print_table(("NAME", "DIGEST", "FORMAT", "PRECISION", "PARAMETERS", "SIZE", "VERIFIED BY"), rows)


def print_runs(runs: Sequence[Run], *, as_json: bool) -> None:
    """What is served now."""
    if as_json:
        print_json([run.to_json() for run in runs])
        return
    rows = [
        (
            model.name,
            model.digest[:19],
            model.detail,
            human_bytes(model.memory) if model.memory else "-",
            model.engine,
            model.version,
            run.address or "(private)",
            str(run.pid),
        )
        for run in runs
        for model in run.models
    ]
    heading = ("NAME", "DIGEST", "STATE", "MEMORY", "ENGINE", "VERSION", "LISTENS ON", "PID")
    print_table(heading, rows)


def print_decision(decision: Decision, pinned: str) -> None:
    """The verdict of a policy in one line, and below it what it rests on. Why it refuses is the error's to say.
    Attestations that no rule asks for are no signatures, and nothing is wrong with that: they are only counted."""
    code = "" if decision.code is Reason.ALLOWED else f"{decision.code.value} "
    verdict = "allowed with a warning:" if decision.warned else "allowed" if decision.allowed else "refused"
    print(f"{verdict} {code}{pinned}")
    others = [step for step in decision.trace if step.kind == "signature" and step.code is Reason.WRONG_PREDICATE]
    for step in decision.trace:
        is_told = not decision.allowed and decision.reason.endswith(f"{step.code.value}: {step.detail}")
        if step not in others and not is_told:
            print(plain(f"  {step.kind} {step.name}: {step.code.value}: {step.detail}"))
    if others:
        print(f"  and {len(others)} attestation{'s' if len(others) > 1 else ''} that no rule asks for")


def print_table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as they need to be. Nothing in a cell may steer the terminal."""
    lines = [tuple(map(plain, row)) for row in ([heading, *rows] if heading else rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))] if lines else []
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def human_bytes(count: int) -> str:
    """A size in the unit people read it in."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def verified_by(record: dict[str, Any]) -> str:
    """Whose signatures were found when the model was pulled under a policy."""
    verified = record.get("verified")
    if not isinstance(verified, dict):
        return "-"
    signers = verified.get("signers")
    return ", ".join(map(str, signers)) if isinstance(signers, list) and signers else str(verified.get("code", "-"))


def plain(text: str) -> str:
    """`text` with nothing in it that steers a terminal."""
    return "".join(char if char.isprintable() else " " for char in text)
