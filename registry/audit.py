"""``registry audit``: what is kept in registries, who signed it, and what a policy makes of it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from artifact.digest import Digest
from artifact.errors import InvalidInput, StowageError
from artifact.remote.pace import Pace
from artifact.remote.transport import Transport
from artifact.terminal import note
from registry.log.key import verifier_of
from registry.log.verify import Verifier
from supplychain.audit.examine import Examiner
from supplychain.audit.output import JsonLines, Output, WholeFile
from supplychain.audit.place import Place, Registry, Scope, read_names
from supplychain.audit.prometheus import Prometheus
from supplychain.audit.record import Record, Status
from supplychain.audit.sarif import Sarif
from supplychain.audit.state import State
from supplychain.audit.table import Table
from supplychain.audit.tally import Tally
from supplychain.audit.vsa import VERIFIER, Summaries
from supplychain.audit.walk import Walk
from supplychain.keys import PrivateKey
from supplychain.policy import Policy
from supplychain.predicate import check_uri

_FORMATS = ("jsonl", "sarif", "prometheus", "table")
_REFUSED = "refused"
_FAILURES = (*(status.value for status in Status if status is not Status.SIGNED), _REFUSED)

audit_app = typer.Typer()


@audit_app.command("audit", epilog="Example: registry audit registry.example --policy policy.yaml --state audit.state")
def audit(
    places: Annotated[
        list[str], typer.Argument(metavar="HOST[/NAME-GLOB]...", help="Registries, or some repositories; or oci:PATH.")
    ],
    policy: Annotated[
        Path | None, typer.Option("--policy", metavar="FILE", help="What is to be required of every artifact.")
    ] = None,
    output: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FORMAT[=FILE]",
            help="jsonl, sarif, prometheus or table, to standard output or (whole, when done) to a file; repeatable. "
            "Default: table",
        ),
    ] = None,
    fail_on: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STATUS", help=f"Exit with status 3 where there is any such: {', '.join(_FAILURES)}; repeatable."
        ),
    ] = None,
    repositories: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The names of the repositories, one a line, where there is no catalog."),
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Remember what was read: the next audit fetches what changed, or goes on."),
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=64, help="How many requests run at a time.")] = 8,
    rate: Annotated[
        float | None, typer.Option(metavar="N", min=0.01, help="Send at most N requests a second. Default: no limit")
    ] = None,
    vsa_key: Annotated[
        str | None,
        typer.Option("--vsa-key", metavar="KEY", help="Attach a verification summary to each artifact, signed by KEY."),
    ] = None,
    vsa_dir: Annotated[
        Path | None, typer.Option("--vsa-dir", metavar="DIR", help="Write the summaries into DIR instead.")
    ] = None,
    verifier_id: Annotated[
        str, typer.Option("--verifier-id", metavar="URI", help="Who the summaries say has verified.")
    ] = VERIFIER,
    log: Annotated[
        str | None,
        typer.Option(
            "--log",
            metavar="PUB",
            help="First replay the transparency log whose verifier key this is, as registry transparency verify does.",
        ),
    ] = None,
    plain_http: Annotated[bool, typer.Option("--plain-http", help="Use HTTP for hosts that are not loopback.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As --output jsonl.")] = False,
) -> None:
    """Look at everything in registries: who has signed it and how, what is attested, and what the policy says.

    Asks the catalog for the repositories unless they are named. One that is broken is reported and the rest goes on;
    exit status 1 if something could not be looked at, 3 where --fail-on hits. With --log and no policy, only the log is
    looked at; a registry whose tags do not follow from its log ends the audit, with exit status 3.

    Examples:

    registry audit registry.example --policy policy.yaml --state audit.state --fail-on unsigned --fail-on invalid

    registry audit 'registry.example/team/**' --policy policy.yaml --output sarif=audit.sarif --output table
    """
    if policy is None and log is None:
        raise InvalidInput("say what is to be required: --policy FILE")
    scopes = [Scope.parse(text) for text in places]
    if log is not None:
        _replay([scope.host for scope in scopes if scope.host is not None], log, plain_http)
    if policy is None:
        return
    wanted = _failures(fail_on or [])
    names = None if repositories is None else read_names(repositories)
    summaries = _summaries(vsa_key, vsa_dir, verifier_id, policy)
    rules = Policy.load(policy)
    pace = Pace(rate)
    with ExitStack() as stack:
        outputs, console = _outputs(stack, [*(output or ()), *(["jsonl"] if as_json else ())] or ["table"])
        memory = stack.enter_context(_remembering(state, " ".join(map(str, (*scopes, *(names or ()))))))
        registry = Registry(plain_http, pace)
        unseen: list[Scope] = []
        found = chain.from_iterable(_places(registry, scope, names, unseen) for scope in scopes)
        walk = Walk(Examiner(rules, memory, summaries), found, concurrency)
        tally = Tally()
        failure = _run(walk, tally, unseen, outputs, stack.enter_context(_progress(console)), pace)
        if failure is None:
            memory.finish(drop=tally.complete)
    note(str(tally))
    _conclude(tally, wanted, failure, state)


def _replay(hosts: list[str], key: str, plain_http: bool) -> None:
    """Verify the transparency logs of registries. Raises `typer.Exit` where a tag does not follow from one."""
    for host in dict.fromkeys(hosts):
        report = Verifier(Transport(host, plain_http=plain_http), verifier_of(key)).run()
        for line in report.lines():
            note(line)
        if report.findings:
            raise typer.Exit(3)


def _places(registry: Registry, scope: Scope, names: Sequence[str] | None, unseen: list[Scope]) -> Iterator[Place]:
    """The repositories of one scope. One without any goes to `unseen`: a catalog leaves out what a login may not see,
    and an audit of nothing must not look like one that found everything in order."""
    none = True
    for place in registry.places(scope, names):
        none = False
        yield place
    if none:
        unseen.append(scope)


def _run(
    walk: Walk, tally: Tally, unseen: list[Scope], outputs: list[Output], progress: Progress, pace: Pace
) -> StowageError | None:
    """Take the walk. What ends it early is returned; the outputs have what was found until then."""
    task = progress.add_task("", total=None)
    failure: StowageError | None = None
    try:
        for record in walk.records():
            tally.add(record)
            for output in outputs:
                output.add(record)
            progress.update(task, description=_shown(walk, tally, record))
    except StowageError as error:
        tally.complete, failure = False, error
    for scope in unseen:
        told = (
            f"{scope}: no repository was found there, or none that this login sees "
            f"(packager login {scope.host}, or name them with --repositories FILE)"
        )
        tally.complete, tally.missed = False, tally.missed or told
    tally.repositories, tally.requests, tally.ended = walk.repositories, pace.requests, time.time()
    progress.stop()
    for output in outputs:
        output.end(tally)
    return failure


def _shown(walk: Walk, tally: Tally, record: Record) -> str:
    known = f"{tally.artifacts} artifacts, {walk.waiting} waiting"
    return (
        f"{known}, {walk.repositories} repositories done, {tally.judged(_REFUSED)} refused  {record.subject.place[:48]}"
    )


def _conclude(tally: Tally, wanted: frozenset[str], failure: StowageError | None, state: Path | None) -> None:
    """Say how it ended, and end with the status that goes with it."""
    if failure is not None or tally.missed:
        note(f"error: {_printable(str(failure or tally.missed))}")
    if not tally.complete:
        again = f"run it again with --state {state}" if state else "with --state FILE another run goes on from there"
        note(f"note: not everything could be looked at: {again}")
    hits = {word: tally.judged(_REFUSED) if word == _REFUSED else tally.count(Status(word)) for word in sorted(wanted)}
    told = ", ".join(f"{count} {word}" for word, count in hits.items() if count)
    if told:
        note(f"error: {told} (--fail-on)")
        raise typer.Exit(3)
    if not tally.complete:
        raise typer.Exit(failure.exit_code if failure is not None and failure.exit_code == 2 else 1)


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text)


def _failures(stated: list[str]) -> frozenset[str]:
    words = [word.strip() for text in stated for word in text.split(",")]
    for word in words:
        if word not in _FAILURES:
            raise InvalidInput(f"--fail-on {word[:40]!r}: want one of {', '.join(_FAILURES)}")
    return frozenset(words)


def _summaries(key: str | None, folder: Path | None, verifier: str, policy: Path) -> Summaries | None:
    if key is None:
        if folder is not None:
            raise InvalidInput("--vsa-dir needs --vsa-key KEY to sign with")
        return None
    check_uri(verifier, "--verifier-id")
    try:
        digest = Digest.of(policy.read_bytes())
    except OSError as error:
        raise InvalidInput(f"cannot read policy {policy}: {error.strerror}") from None
    return Summaries(PrivateKey.load(key, _password), digest, verifier, folder)


def _password() -> bytes:
    stated = os.environ.get("COSIGN_PASSWORD")
    if stated is not None:
        return os.fsencode(stated)
    if not sys.stdin.isatty():
        raise InvalidInput("the key needs a password: set COSIGN_PASSWORD (it may be empty)")
    answer: str = typer.prompt("Password for the key", hide_input=True, err=True, default="", show_default=False)
    return answer.encode()


@contextmanager
def _remembering(path: Path | None, scope: str) -> Iterator[State]:
    state = State(path, scope)
    if state.resumed:
        note("going on with the audit that was broken off")
    try:
        yield state
    finally:
        state.close()


def _outputs(stack: ExitStack, stated: list[str]) -> tuple[list[Output], Console]:
    """The outputs asked for, and the console that may show progress: that of a table on a terminal, or stderr."""
    asked = [_asked(text) for text in stated]
    if sum(path is None for _, path in asked) > 1:
        raise InvalidInput("only one --output can go to standard output: write the others as FORMAT=FILE")
    console = Console(stderr=True)
    made: list[Output] = []
    for name, path in asked:
        if path is not None:
            file = WholeFile(path)
            stack.callback(file.discard)
            made.append(_Filed(_output(name, Console(file=file.stream, width=200), file), file))
            continue
        out = Console()
        if out.is_terminal:
            console = out if name == "table" else Console(quiet=True)
        made.append(_output(name, out, None))
    return made, console


def _asked(text: str) -> tuple[str, Path | None]:
    name, equals, stated = text.partition("=")
    if name not in _FORMATS or (equals and not stated):
        raise InvalidInput(f"--output {text[:80]!r}: want {', '.join(_FORMATS)}, and =FILE after it if you like")
    path = Path(stated).absolute() if equals else None
    if path is not None and not path.parent.is_dir():
        raise InvalidInput(f"--output {text[:200]!r}: its folder does not exist: create it first")
    return name, path


def _output(name: str, console: Console, file: WholeFile | None) -> Output:
    stream = sys.stdout if file is None else file.stream
    if name == "table":
        return Table(console)
    if name == "jsonl":
        return JsonLines(stream)
    return Sarif(stream) if name == "sarif" else Prometheus(stream)


class _Filed:
    """An output whose file appears when it has ended."""

    def __init__(self, output: Output, file: WholeFile) -> None:
        self._output, self._file = output, file

    def add(self, record: Record) -> None:
        self._output.add(record)

    def end(self, tally: Tally) -> None:
        self._output.end(tally)
        self._file.commit()


@contextmanager
def _progress(console: Console) -> Iterator[Progress]:
    """A line that says how far it is; nothing where there is no terminal."""
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield progress
