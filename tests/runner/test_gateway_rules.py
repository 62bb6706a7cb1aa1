"""The pure parts of the gateway and of supervision: keys, scopes, translations, metrics, estimates, logs."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifact.errors import InvalidInput
from runner import logs
from runner.configured import Configured, Keeping, load, save
from runner.deployment import pause_after
from runner.gateway.access import needed_scope
from runner.gateway.metrics import merged
from runner.gateway.multipart import model_field, with_model
from runner.gateway.translation import Transcript, options, translated
from runner.gateway.translation import seconds as keep_alive
from runner.keys import Bucket, KeyFile
from runner.memory import Estimate, config_shape, gguf_shape
from runner.serve_command import seconds, size
from runner.wishes import Wishes


@pytest.mark.parametrize(
    ("method", "path", "scope"),
    [
        ("GET", "/healthz", ""), ("GET", "/v1/models", "infer"), ("POST", "/v1/chat/completions", "infer"),
        ("POST", "/engines/llama.cpp/v1/embeddings", "infer"), ("POST", "/rerank", "infer"),
        ("POST", "/api/chat", "infer"), ("POST", "/models/create", "admin"), ("DELETE", "/models/a/b", "admin"),
        ("POST", "/engines/unload", "admin"), ("POST", "/engines/vllm/_configure", "admin"),
        ("POST", "/v1/chat/completions/", "admin"), ("POST", "/healthz", ""), ("PUT", "/anything", "admin"),
        ("POST", "/models/x/v1/chat/completions", "admin"), ("POST", "/engines/a/b/v1/completions", "admin"),
    ],
)  # fmt: skip
def test_what_changes_something_needs_admin(method, path, scope):
    assert needed_scope(method, path) == scope


def test_only_the_whole_key_matches(tmp_path):
    file = KeyFile(tmp_path / "keys.json")
    key = file.add("a", ["infer"])
    other = file.add("b", ["admin"])
    assert file.match(key).name == "a"
    assert file.match(other).scopes == ("admin",)
    for wrong in ("", key[:-1], key + "A", other[:17] + key[17:], "stw__"):
        assert file.match(wrong) is None
    for name, scopes in (("a", ["infer"]), ("x y", ["infer"]), ("c", ["root"]), ("c", [])):
        with pytest.raises(InvalidInput):
            file.add(name, scopes)
    (tmp_path / "keys.json").write_text("{}")
    assert file.match(key) is None


def test_keys_that_are_made_and_removed_at_once_do_not_undo_each_other(tmp_path):
    path = tmp_path / "keys.json"

    def at_once(*changes):
        with ThreadPoolExecutor(len(changes)) as pool:
            for done in [pool.submit(change) for change in changes]:
                done.result()

    at_once(*(partial(KeyFile(path).add, f"key{number}", ["infer"]) for number in range(8)))
    assert len(KeyFile(path).keys()) == 8
    for number in range(8):
        at_once(partial(KeyFile(path).remove, f"key{number}"), partial(KeyFile(path).add, f"new{number}", ["infer"]))
    left = KeyFile(path).keys()
    assert [key.name for key in left] == [f"new{number}" for number in range(8)]


def test_a_bucket_lets_its_rate_pass():
    bucket = Bucket(60, 0.0)
    assert [bucket.take(0.0) for _ in range(60)] == [0.0] * 60
    assert bucket.take(0.0) == pytest.approx(1.0)
    assert bucket.take(1.0) == 0.0
    assert bucket.take(1.0) > 0


@given(st.binary(max_size=200), st.text("abcdef/:.-", min_size=1, max_size=40))
def test_only_the_model_field_of_a_form_changes(payload, name):
    boundary = b"----b0undary"
    if boundary in payload:
        return
    file = b'Content-Disposition: form-data; name="file"; filename="model"\r\n\r\n' + payload
    model = b'Content-Disposition: form-data; name="model"\r\n\r\n' + name.encode()
    body = (
        b"".join(b"--" + boundary + b"\r\n" + part + b"\r\n" for part in (file, model)) + b"--" + boundary + b"--\r\n"
    )
    place = model_field(b"multipart/form-data; boundary=" + boundary, body)
    assert body[slice(*place)] == name.encode()
    changed = with_model(body, place, "other")
    assert changed == body.replace(model, model[: -len(name.encode())] + b"other")


@given(st.binary(max_size=300))
def test_any_form_is_read_without_harm(body):
    place = model_field(b"multipart/form-data; boundary=x", body)
    assert place is None or 0 <= place[0] <= place[1] <= len(body)


def test_metrics_of_two_engines_stand_together():
    text = '# HELP a_total x\n# TYPE a_total counter\na_total 1\nb{q="0.5"} 2\nnonsense here and there {\n'
    result = merged([("sha256:1", text), ("sha256:2", text)]).splitlines()
    assert result == [
        "# HELP a_total x", "# TYPE a_total counter",
        'a_total{digest="sha256:1"} 1', 'a_total{digest="sha256:2"} 1',
        'b{digest="sha256:1",q="0.5"} 2', 'b{digest="sha256:2",q="0.5"} 2',
    ]  # fmt: skip


def test_options_become_parameters():
    made = options({"num_predict": 5, "top_k": 2, "num_ctx": 10, "seed": None}, 10)
    assert made == {"max_tokens": 5, "top_k": 2}
    assert options({"num_predict": -1}, 10) == {}
    assert options({"num_predict": 5.0, "stop": ["a"], "top_p": 1}, 10) == {"max_tokens": 5, "stop": ["a"], "top_p": 1}
    for wrong in (
        {"num_ctx": 11}, {"mirostat": 1}, {"num_ctx": True}, {"num_predict": "5"}, {"num_predict": 0.5}, {"stop": 5},
        {"top_p": "high"}, "x",
    ):  # fmt: skip
        with pytest.raises(InvalidInput):
            options(wrong, 10)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
MESSAGE = st.fixed_dictionaries({}, optional=dict.fromkeys(("role", "content", "images", "tool_calls"), JSON))
ASKED = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(("input", "prompt", "system", "format", "think", "tools", "images", "keep_alive"), JSON),
        "options": JSON | st.dictionaries(st.sampled_from(["num_predict", "num_ctx", "stop", "top_p", "seed"]), JSON),
        "messages": JSON | st.lists(MESSAGE, max_size=2),
    },
)


@given(st.sampled_from(["chat", "generate", "embed", "embeddings"]), ASKED)
def test_whatever_ollamas_clients_send_is_translated_or_refused(route, body):
    with suppress(InvalidInput):
        asked = translated(f"/api/{route}", body, "m", 10)
        assert asked is None or json.dumps(asked.body)
    with suppress(InvalidInput):
        length = keep_alive(body.get("keep_alive"))
        assert length is None or time.gmtime(time.time() + length)


@pytest.mark.parametrize(
    "message",
    [
        {"tool_calls": [{}]}, {"tool_calls": "x"}, {"tool_calls": [{"function": {"name": 5}}]}, {"images": [5]},
        {"images": ["é"]}, {"content": {}}, {"role": 1},
    ],
)  # fmt: skip
def test_messages_that_are_none(message):
    with pytest.raises(InvalidInput):
        translated("/api/chat", {"messages": [message]}, "m", 10)


def test_images_tools_and_formats_become_what_openai_has():
    body = {
        "messages": [
            {"role": "user", "content": "x", "images": ["iVBORw0KGgo="]},
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]},
            {"role": "tool", "content": "3"},
        ],
        "format": {"type": "object"}, "tools": [{"type": "function"}], "stream": False,
    }  # fmt: skip
    made = translated("/api/chat", body, "m", 10)
    user, assistant, tool = made.body["messages"]
    assert user["content"][1]["image_url"]["url"] == "data:image/png;base64,iVBORw0KGgo="
    assert json.loads(assistant["tool_calls"][0]["function"]["arguments"]) == {"a": 1}
    assert assistant["tool_calls"][0]["id"] == tool["tool_call_id"]
    assert made.body["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert made.stream is False


def test_fragments_of_a_tool_call_leave_whole():
    asked = translated("/api/chat", {"messages": [{"content": "x"}]}, "m", 10)
    transcript = Transcript(asked, "m", time.monotonic_ns())
    for fragment in ({"name": "f", "arguments": '{"a"'}, {"arguments": ": 1}"}):
        event = {"choices": [{"delta": {"tool_calls": [{"index": 0, "function": fragment}]}}]}
        assert list(transcript.take(b"data: " + json.dumps(event).encode(), lambda: "")) == []
    assert list(transcript.take(b"data: [DONE]", lambda: "")) == []
    assert transcript.end("")["message"]["tool_calls"] == [{"function": {"name": "f", "arguments": {"a": 1}}}]


@pytest.mark.parametrize(
    ("text", "value"), [("5m", 300), ("1h30m", 5400), (0, 0), ("-1", -1), (None, None), ("250ms", 0.25), ("-1m", -60)]
)
def test_keep_alive(text, value):
    assert keep_alive(text) == value


def test_durations_and_sizes():
    assert [seconds(text) for text in ("0", "90s", "1.5m", "1h")] == [0, 90, 90, 3600]
    assert [size(text) for text in ("0", "1KiB", "2M", "1.5GiB", "1 GB")] == [0, 1024, 2 << 20, 3 << 29, 1 << 30]


def test_pauses_grow_to_a_limit():
    assert [pause_after(count) for count in (1, 2, 3, 20, 10**6)] == [0.5, 1.0, 2.0, 60.0, 60.0]


def test_memory_follows_the_models_own_numbers():
    config = {
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "vocab_size": 9,
    }
    assert config_shape(config).kv_width == (2 * 2 * 8, 2 * 2 * 8)
    metadata = {
        "general.architecture": "llama", "llama.block_count": 2, "llama.embedding_length": 64, "llama.vocab_size": 9,
        "llama.attention.head_count": 8, "llama.attention.head_count_kv": [2, 4], "llama.attention.key_length": 16,
    }  # fmt: skip
    assert gguf_shape(metadata).kv_width == (6 * 16, 6 * 8)
    assert str(Estimate(3 << 30, 1 << 29, 1 << 20)) == (
        "3.50 GiB (3.00 GiB weights + 0.50 GiB keys and values + 1.0 MiB buffers)"
    )


def test_a_log_is_bounded_and_its_tail_reaches_back(tmp_path):
    log = tmp_path / "m.log"
    log.write_bytes(b"".join(b"line %04d\n" % number for number in range(1000)))
    with log.open("ab") as writer:
        assert logs.rotate(log, 5000)
        assert not logs.rotate(log, 5000)
        writer.write(b"after\n")
        writer.flush()
    assert log.read_bytes() == b"after\n"
    assert log.with_name("m.log.1").stat().st_size == 5000
    assert logs.tail(log, 3) == b"line 0998\nline 0999\nafter\n"
    assert logs.tail(log, 0) == b""


def test_following_outlives_rotation(tmp_path):
    log = tmp_path / "m.log"
    log.write_bytes(b"x" * 100)
    alive = threading.Event()
    alive.set()
    seen: list[bytes] = []
    follower = threading.Thread(target=lambda: seen.extend(logs.follow(log, alive.is_set, 0.01)))
    follower.start()
    time.sleep(0.1)
    logs.rotate(log, 10)
    time.sleep(0.1)
    with log.open("ab") as writer:
        writer.write(b"new\n")
    time.sleep(0.1)
    alive.clear()
    follower.join(5)
    assert b"".join(seen) == b"new\n"


def test_what_was_configured_is_read_back(tmp_path):
    kept = Configured(
        "host.example/a/b:v1",
        "sha256:" + "a" * 64,
        Wishes(None, 10, "0", Path("/x"), ("--parallel", "2")),
        Keeping(5.0, True),
    )
    save(tmp_path / "c" / "x.json", [kept], "/policy.yaml", True)
    found = load(tmp_path / "c" / "x.json")
    assert (found.models, found.policy, found.plain_http) == ((kept,), "/policy.yaml", True)
    assert load(tmp_path / "nothing.json").models == ()
    assert str(kept.names[1]) == f"host.example/a/b@{kept.digest}"
