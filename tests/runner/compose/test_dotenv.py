"""``.env`` files: read as Compose reads them; one block of ours written, nothing else touched."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artifact.errors import InvalidInput
from runner.compose.dotenv import BEGIN, END, parse, with_block, write_block

TEXT = """
# a comment
A=1
export B = two words # not this
C='single $A "quoted" # kept'
D="double $A \\"x\\" \\$A\\n"
E=${A}/${MISSING:-none}
F=
G="over
two lines"
H=a#b
"""


def test_a_file_is_read_as_compose_reads_it() -> None:
    assert parse(TEXT, ".env", {}) == {
        "A": "1",
        "B": "two words",
        "C": 'single $A "quoted" # kept',
        "D": 'double 1 "x" $A\n',
        "E": "1/none",
        "F": "",
        "G": "over\ntwo lines",
        "H": "a#b",
    }
    assert parse("A=${X}", ".env", {"X": "from outside"}) == {"A": "from outside"}


@pytest.mark.parametrize(
    ("text", "line"),
    [("A=1\nnonsense", 2), ("\n=x", 2), ('A="open\nB=2', 1), ("A='x' y", 1), ("A=$", 1), ("A=${B:?b}", 1)],
)
def test_mistakes_are_told_with_their_line(text: str, line: int) -> None:
    with pytest.raises(InvalidInput, match=rf"^\.env:{line}: "):
        parse(text, ".env", {})


def test_the_block_is_replaced_and_the_rest_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_bytes("MINE=1\r\n\n  # ümlaut\nLAST=2".encode())
    path.chmod(0o640)
    assert write_block(path, {"B_URL": "http://127.0.0.1:1/v1", "A_MODEL": "oci:/with space:x"})
    expected = (
        f"MINE=1\r\n\n  # ümlaut\nLAST=2\n{BEGIN}\nA_MODEL='oci:/with space:x'\nB_URL=http://127.0.0.1:1/v1\n{END}\n"
    )
    assert path.read_bytes() == expected.encode()
    assert path.stat().st_mode & 0o777 == 0o640
    with path.open("a") as stream:
        stream.write("AFTER=3\n")
    assert write_block(path, {"C": "3"})
    assert path.read_bytes() == f"MINE=1\r\n\n  # ümlaut\nLAST=2\n{BEGIN}\nC=3\n{END}\nAFTER=3\n".encode()
    assert not write_block(path, {"C": "3"})
    assert write_block(path, {})
    assert path.read_bytes() == "MINE=1\r\n\n  # ümlaut\nLAST=2\nAFTER=3\n".encode()
    assert [path.name for path in tmp_path.iterdir()] == [".env"]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("A=1\n")
    (tmp_path / ".env").symlink_to("real")
    write_block(tmp_path / ".env", {"B": "2"})
    assert (tmp_path / ".env").is_symlink()
    assert "B=2" in (tmp_path / "real").read_text()


@pytest.mark.parametrize("text", [BEGIN, f"{END}\n{BEGIN}\n", f"{BEGIN}\n{BEGIN}\n{END}\n{END}\n"])
def test_damaged_marks_are_an_error(text: str) -> None:
    with pytest.raises(InvalidInput, match="marks of the block"):
        with_block(text, {"A": "1"})


@settings(deadline=None)
@given(st.text().filter(lambda text: BEGIN not in text and END not in text))
def test_a_block_that_goes_leaves_what_was_there(text: str) -> None:
    once = with_block(text, {"A": "1"})
    assert parse(once[once.index(BEGIN) :], ".env", {}) == {"A": "1"}
    assert with_block(once, {}) in (text, text + "\n")


@settings(deadline=None)
@given(
    st.dictionaries(
        st.from_regex(r"[A-Z_][A-Z0-9_]{0,8}", fullmatch=True),
        st.text(
            alphabet=st.characters(codec="utf-8", exclude_characters="'", exclude_categories=["Cc", "Cs", "Zl", "Zp"])
        ),
    )
)
def test_what_is_written_is_read_back(variables: dict[str, str]) -> None:
    assert parse(with_block("", variables), ".env", {}) == variables
