"""Why an engine stopped, told from what it wrote: the line that names the cause, and what is usually done about it."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass

_PREFIX = r"(?:\([^()]*\)\s*)?(?:(?:ERROR|CRITICAL)\s[^\]]{0,80}\]\s*)?"
_PYTHON = re.compile(rf"{_PREFIX}(?:[a-z_][\w.]*\.)?([A-Z]\w*(?:Error|Exception|NotFound|Interrupt)): (\S.*)")
_CPP = re.compile(
    r"(?:.*\b)?(?:error loading model(?: \w+)?|error|exception|what\(\)|GGML_ASSERT|failed): ?(\S.*)", re.I
)
_CONSEQUENCES = ("Engine core initialization failed", "cannot schedule new futures", "Engine process failed to start")
_LONGEST = 400


@dataclass(frozen=True)
class _Hint:
    pattern: re.Pattern[str]
    text: str


def _hint(pattern: str, text: str) -> _Hint:
    return _Hint(re.compile(pattern, re.I), text)


_HINTS = (
    _hint(r"out of memory|cannot allocate memory|MemoryError|bad_alloc|failed to allocate|less than desired|"
          r"less than requested memory|No available memory|needed, which is larger than the available KV cache|"
          r"serve even a single token",
          "not enough memory: state a smaller --context-size, serve fewer requests at a time (-- --parallel or "
          "--max-num-seqs), give vLLM's cache more (-- --kv-cache-memory-bytes), choose a smaller precision, or stop "
          "other models"),
    _hint(r"unknown model architecture|architectures? .{0,120}(not supported|failed to be inspected)|"
          r"does not recognize this architecture|no model class",
          "this version of the engine does not know the model's architecture: another version may "
          "(runner engine list)"),
    _hint(r"address already in use", "something else listens where the engine wants to"),
    _hint(r"illegal instruction|\bavx|instruction set",
          "the processor lacks an instruction set the engine was built for (runner engine list)"),
    _hint(r"driver version is insufficient|no kernel image|no cuda-capable device|found no nvidia driver|"
          r"libcuda\.so|failed to infer device type",
          "the GPU or its driver does not fit this build of the engine (runner engine list)"),
    _hint(r"ModuleNotFoundError|ImportError|undefined symbol|cannot open shared object",
          "the engine's environment is not complete: remove the engine and install it again"),
    _hint(r"No space left on device", "the disk, or the shared memory, is full"),
    _hint(r"operation not permitted|permission denied|network is unreachable",
          "the sandbox may keep it from something it needs: --sandbox off shows whether it does"),
)  # fmt: skip


def cause(text: str) -> str | None:
    """The line of an engine's output that names the cause, without the engine's own prefixes; None if none does."""
    found = None
    for line in text.splitlines():
        match = _PYTHON.match(line.strip())
        if match and not match[2].startswith(_CONSEQUENCES):
            found = f"{match[1]}: {match[2]}"
    if found is None:
        for line in text.splitlines():
            match = _CPP.match(line.strip())
            if match:
                found = match[1]
                break  # llama.cpp says the cause first, then what follows from it
    return found[:_LONGEST] if found else None


def hint(text: str, killed_by: int | None = None) -> str | None:
    """What is usually done about it. `killed_by` is the signal that ended the engine."""
    if killed_by == signal.SIGKILL:
        return "something killed it: most often the kernel, because memory ran out"
    if killed_by == signal.SIGILL:
        return "the processor lacks an instruction set the engine was built for (runner engine list)"
    return next((item.text for item in _HINTS if item.pattern.search(text)), None)


def diagnosis(lines: Sequence[str], killed_by: int | None = None) -> str:
    """Cause and advice as the middle of a sentence, starting with ``: ``; empty where nothing can be told."""
    text = "\n".join(lines)
    why = cause(text)
    advice = hint(why or text, killed_by) or hint(text, killed_by)
    told = [part for part in (why, f"({advice})" if advice else None) if part]
    return f": {' '.join(told)}" if told else ""
