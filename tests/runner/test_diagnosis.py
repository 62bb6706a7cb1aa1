"""What is told of an engine that died, from what engines really write."""

from __future__ import annotations

import signal

import pytest

from runner.diagnosis import cause, diagnosis, hint

VLLM = """\
(APIServer pid=7) INFO 11-22 21:00:00 [utils.py:253] non-default args
(Worker pid=11) ERROR 11-22 21:00:05 [multiproc_executor.py:870] Traceback (most recent call last):
(Worker pid=11) ERROR 11-22 21:00:05 [multiproc_executor.py:870]     raise ValueError(
(Worker pid=11) ERROR 11-22 21:00:05 [multiproc_executor.py:870] ValueError: Available memory on node 0 (16/23 GiB) on \
startup is less than desired CPU memory utilization (0.92, 21 GiB).
(EngineCore pid=9) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
(APIServer pid=7) RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
"""
LLAMA = """\
llama_model_load: error loading model: error loading model architecture: unknown model architecture: 'future'
llama_model_load_from_file_impl: failed to load model
srv    load_model: failed to load model, 'bundle/m.gguf'
the model could not be loaded
"""


def test_the_root_of_a_long_traceback_is_found():
    assert str(cause(VLLM)).startswith("ValueError: Available memory on node 0 (16/23 GiB)")
    assert "smaller --context-size" in diagnosis(VLLM.splitlines())


def test_llamacpp_says_the_cause_first():
    assert "unknown model architecture: 'future'" in str(cause(LLAMA))
    assert "does not know the model's architecture" in diagnosis(LLAMA.splitlines())


@pytest.mark.parametrize(
    ("line", "advice"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", "not enough memory"),
        ("ValueError: Model architectures ['FooForCausalLM'] are not supported for now.", "another version may"),
        ("OSError: [Errno 98] Address already in use", "something else listens"),
        ("RuntimeError: Failed to infer device type", "GPU or its driver"),
        ("ImportError: libfoo.so: cannot open shared object file", "install it again"),
        ("PermissionError: [Errno 13] Permission denied: '/etc/x'", "--sandbox off shows"),
        ("ValueError: the sky is green", None),
    ],
)
def test_advice_for_common_causes(line, advice):
    told = diagnosis([line])
    assert line.partition(": ")[2] in told
    assert (advice in told) if advice else "(" not in told


def test_signals_speak_for_themselves():
    assert "memory ran out" in str(hint("", signal.SIGKILL))
    assert "instruction set" in str(hint("", signal.SIGILL))


def test_nothing_is_made_up():
    assert diagnosis([]) == ""
    assert diagnosis(["loading", "still loading"]) == ""


def test_a_cause_is_never_longer_than_a_screen():
    assert len(str(cause("ValueError: " + "x" * 10_000))) <= 400
