"""The user's own text: which files are read, how they are cut, and what is said about files that are not text."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steepest.lab.data import text_files
from steepest.lab.data.text_files import PIECE, TextFiles, cut, read_text
from steepest.lab.errors import UserError


def texts(path: Path) -> list[str]:
    return [document.text for document in TextFiles(path).documents()]


def test_all_formats_in_sorted_order(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.md").write_text("# b")
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "sub" / "d.TXT").write_text("d")
    (tmp_path / "c.jsonl").write_text('{"text": "c1", "other": 1}\n\n{"text": "c2"}\n')
    (tmp_path / "e.txt.gz").write_bytes(gzip.compress(b"e"))
    (tmp_path / "f.jsonl.gz").write_bytes(gzip.compress(b'{"text": "f \\u00e9"}'))
    assert texts(tmp_path) == ["a", "# b", "c1", "c2", "e", "f é", "d"]


def test_other_and_hidden_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "image.png").write_bytes(b"\x89PNG\0")
    (tmp_path / ".secret.txt").write_text("hidden")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "note.txt").write_text("hidden")
    assert texts(tmp_path) == ["a"]


def test_a_single_file_may_have_any_name(tmp_path: Path) -> None:
    (tmp_path / "LICENSE").write_text("terms")
    assert texts(tmp_path / "LICENSE") == ["terms"]


def test_missing_path_and_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        TextFiles(tmp_path / "absent")
    (tmp_path / "image.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"no file in this folder ends in \.txt, \.md, \.jsonl"):
        TextFiles(tmp_path)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"good text\0more", r"a NUL byte at byte 9\b"),
        (b"caf\xe9 au lait", r"the byte 0xe9 at byte 3\b"),
        ("häh".encode("utf-16"), r"the byte 0xff at byte 0\b|a NUL byte"),
        (b"ends in half a character \xe2\x82", r"an incomplete character at the end at byte 25\b"),
        (b"\xf0\x9f\x98 broken", r"the byte 0xf0 at byte 0\b"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_not_text(tmp_path: Path, content: bytes, complaint: str, packed: bool) -> None:
    path = tmp_path / ("bad.txt.gz" if packed else "bad.txt")
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(UserError, match=rf"bad\.txt.*is not UTF-8 text: ({complaint})") as caught:
        texts(path)
    assert ("of the unpacked text" in str(caught.value)) is packed
    assert "iconv" in str(caught.value)


def test_position_is_right_beyond_the_first_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "_BLOCK", 7)
    for position in range(1, 40):
        path = tmp_path / f"{position}.txt"
        path.write_bytes(("é" * 40).encode()[: position * 2] + b"\xff" + b"rest of the text")
        with pytest.raises(UserError, match=rf"the byte 0xff at byte {position * 2}\b"):
            list(read_text(path))
        path.write_bytes(("é" * 40).encode()[: position * 2] + b"\0" + b"rest of the text")
        with pytest.raises(UserError, match=rf"a NUL byte at byte {position * 2}\b"):
            list(read_text(path))


@given(text=st.text(max_size=200), block=st.integers(1, 9), mark=st.booleans())
@settings(max_examples=60, deadline=None)
def test_reading_in_blocks_is_reading(
    text: str, block: int, mark: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    text = text.replace("\0", "").removeprefix("\ufeff")
    path = tmp_path_factory.mktemp("read") / "a.txt"
    path.write_bytes((b"\xef\xbb\xbf" if mark else b"") + text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "_BLOCK", max(block, 3))
        assert "".join(read_text(path)) == text


@given(
    words=st.lists(st.sampled_from(["word ", "line\n", "end.\n\n", "x" * 900]), max_size=400),
    block=st.sampled_from([10, 5_000, 10**6]),
)
@settings(max_examples=40, deadline=None)
def test_cutting_loses_nothing_and_ignores_blocks(words: list[str], block: int) -> None:
    text = "".join(words)
    pieces = list(cut(text[i : i + block] for i in range(0, len(text), block)))
    assert "".join(pieces) == text
    assert all(0 < len(piece) <= 2 * PIECE for piece in pieces)
    assert pieces == list(cut(iter([text])))


def test_long_files_are_cut_at_paragraphs_and_short_ones_are_not() -> None:
    short = "paragraph\n\n" * 700
    assert len(short) < 2 * PIECE
    assert list(cut(iter([short]))) == [short]
    long = "\n\n".join(f"paragraph {i} " + "of some words " * 20 for i in range(100))
    pieces = list(cut(iter([long])))
    assert len(pieces) > 4
    assert all(piece.startswith("paragraph") for piece in pieces)


@pytest.mark.parametrize(
    "line", ["{", "[1]", '"text"', '{"txt": "a"}', '{"text": 3}', '{"text": null}', '{"text": "\\ud800"}']
)
def test_bad_json_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "good"}) + "\n" + line + "\n")
    with pytest.raises(UserError, match=r'a\.jsonl, line 2: expected a JSON object with a string "text"'):
        texts(path)


@pytest.mark.parametrize("damage", ["cut", "not gzip"])
def test_broken_gzip(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(os.urandom(3_000).hex().encode())[:-900] if damage == "cut" else b"plain text")
    with pytest.raises(UserError, match=r"a\.txt\.gz is not a whole gzip file"):
        texts(path)


def test_a_file_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("text")

    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(UserError, match=r"cannot read .*a\.txt: Permission denied"):
        texts(tmp_path)


def test_recipe_changes_with_the_files(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("text")
    first = TextFiles(tmp_path).recipe()
    assert TextFiles(tmp_path).recipe() == first
    path.write_text("next")
    os.utime(path, ns=(1, 1))
    second = TextFiles(tmp_path).recipe()
    path.rename(tmp_path / "b.txt")
    third = TextFiles(tmp_path).recipe()
    (tmp_path / "c.txt").write_text("")
    fourth = TextFiles(tmp_path).recipe()
    assert len({str(recipe) for recipe in (first, second, third, fourth)}) == 4
