"""File paths out of annotations stay inside the folder they are meant for."""

import os.path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifact.errors import Malformed
from artifact.filepath import checked_path, checked_paths


@given(st.text(max_size=60))
def test_an_accepted_path_is_inside_and_spelled_one_way(text: str) -> None:
    try:
        path = checked_path(text)
    except Malformed:
        return
    assert path == text
    assert os.path.normpath(f"/base/{path}") == "/base/" + path
    assert "\\" not in path and "\0" not in path


@pytest.mark.parametrize(
    "text", ["model.safetensors", "sub/folder/file.bin", "ünïcode.json", "a b.txt", ".gitattributes"]
)
def test_ordinary_paths_pass(text: str) -> None:
    assert checked_path(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "", ".", "..", "/etc/passwd", "../x", "a/../../x", "a//b", "a/", "./a", "a\\b", "~/x", "-rf", "a/-x",
        "a\0b", "a\nb", "a\u202eb", "e\u0301", "x" * 2000, "a/" + "b" * 256,
    ],
)  # fmt: skip
def test_unsafe_paths_are_refused(text: str) -> None:
    with pytest.raises(Malformed):
        checked_path(text)


@pytest.mark.parametrize("texts", [["a", "a"], ["a", "A"], ["a", "a/b"], ["x/y/z", "x"]])
def test_paths_that_collide_are_refused(texts: list[str]) -> None:
    with pytest.raises(Malformed):
        checked_paths(texts)


def test_paths_that_do_not_collide_pass() -> None:
    assert checked_paths(["a/b", "a/c", "ab"]) == ["a/b", "a/c", "ab"]
