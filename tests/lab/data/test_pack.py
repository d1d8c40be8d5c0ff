"""Packs: what is in the files, what the manifest says, and what happens when somebody changed them."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from steepest.lab.data import Pack, open_pack
from steepest.lab.data.documents import Document, Source, bucket_of
from steepest.lab.data.pack import write_pack
from steepest.lab.data.tokenizers import ByteTokenizer, SubwordTokenizer, Tokenizer, train_bpe
from steepest.lab.errors import UserError

DOCUMENTS = [Document(f"Text number {i}: é{i * i}.", "one" if i < 150 else "two") for i in range(400)]
HELD = [document for document in DOCUMENTS if bucket_of(document.text.encode()) < 5]
KEPT = [document for document in DOCUMENTS if bucket_of(document.text.encode()) >= 5]


def sized(documents: list[Document]) -> Iterator[tuple[Document, int]]:
    return ((document, len(document.text.encode())) for document in documents)


def build(folder: Path, tokenizer: Tokenizer | None = None, documents: list[Document] = DOCUMENTS) -> Pack:
    folder.mkdir(parents=True)
    write_pack(
        folder,
        sized(documents),
        tokenizer or ByteTokenizer(),
        name="test",
        tokenizer_name="bytes" if tokenizer is None else "bpe-300",
        sources=[Source(name=name, origin="here", licence="CC0-1.0") for name in ("one", "two")],
        validation_percent=5,
        recipe={"corpus": "test"},
    )
    return open_pack(folder, verify=True)


@pytest.fixture
def pack(tmp_path: Path) -> Pack:
    return build(tmp_path / "pack")


def bpe() -> SubwordTokenizer:
    return train_bpe([document.text for document in KEPT], 300)


@pytest.mark.parametrize("make", [ByteTokenizer, bpe])
def test_files_hold_the_documents_with_boundaries(tmp_path: Path, make: Callable[[], Tokenizer]) -> None:
    tokenizer = make()
    pack = build(tmp_path / "p", tokenizer)
    assert HELD
    for split, documents in (("train", KEPT), ("validation", HELD)):
        ids = np.fromfile(pack.folder / f"{split}.bin", dtype="<u2")
        expected = [i for d in documents for i in [*tokenizer.encode([d.text])[0], tokenizer.end_of_text]]
        assert ids.tolist() == expected
        assert pack.tokens(split).tolist() == expected
        assert pack.decode(ids) == "".join(d.text + "<|endoftext|>" for d in documents)
        counts = pack.manifest["splits"][split]
        assert counts["documents"] == len(documents)
        assert counts["bytes"] == sum(len(d.text.encode()) for d in documents)
        assert counts["tokens"] == len(expected)
        assert counts["sha256"] == hashlib.sha256(ids.tobytes()).hexdigest()
        assert pack.bytes_per_token[split] == counts["bytes"] / counts["tokens"]
    assert (pack.vocabulary_size, pack.end_of_text) == (tokenizer.vocabulary_size, tokenizer.end_of_text)
    assert (pack.train_tokens, pack.validation_tokens) == (len(pack.tokens("train")), len(pack.tokens("validation")))
    assert pack.encode("Text") == tokenizer.encode(["Text"])[0].tolist()


def test_many_groups_of_documents_are_one_pack(pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steepest.lab.data.pack._ENCODE_BYTES", 50)
    assert build(tmp_path / "small groups").sha256 == pack.sha256


class Wide(ByteTokenizer):
    """Bytes, moved beyond what sixteen bits hold."""

    vocabulary_size = 70_257
    end_of_text = 70_256

    def encode(self, texts: object) -> list[np.ndarray]:
        return [ids + 70_000 for ids in super().encode(texts)]  # type: ignore[arg-type]


@pytest.mark.parametrize(("size", "dtype"), [(65_535, "uint16"), (65_536, "uint32"), (70_257, "uint32")])
def test_wide_ids_for_a_large_vocabulary(
    tmp_path: Path, size: int, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = Wide() if size > 70_000 else ByteTokenizer()
    monkeypatch.setattr(type(tokenizer), "vocabulary_size", size)
    pack = build(tmp_path / "p", tokenizer)
    assert pack.manifest["dtype"] == dtype
    assert pack.tokens("train").dtype == np.dtype(dtype)
    assert pack.tokens("train")[len(KEPT[0].text.encode())] == pack.end_of_text
    batch = pack.train(batch_size=2, length=10).batch(0)
    assert int(batch.max()) <= pack.end_of_text


class Renamed(ByteTokenizer):
    """The same ids, but another tokenizer."""

    def to_json(self) -> str:
        return "{}"


def test_identity_follows_the_data(pack: Pack, tmp_path: Path) -> None:
    assert build(tmp_path / "again").sha256 == pack.sha256
    others = [
        build(tmp_path / "other text", documents=[*DOCUMENTS[:-1], Document("changed", "two")]),
        build(tmp_path / "other order", documents=DOCUMENTS[:150][::-1] + DOCUMENTS[150:]),
        build(tmp_path / "other tokenizer", bpe()),
        build(tmp_path / "other name", Renamed()),
    ]
    assert len({pack.sha256, *(other.sha256 for other in others)}) == 5


def test_validation_of_one_source(pack: Pack) -> None:
    for name in ("one", "two"):
        evaluation = pack.validation(tokens=10**6, length=5, batch_size=4, source=name)
        expected = "".join(d.text + "<|endoftext|>" for d in HELD if d.source == name)
        seen = pack.decode(i for batch in evaluation for row in batch for i in row[:-1]).rstrip("\ufffd")
        assert expected.startswith(seen)
        assert len(expected.encode()) - len(seen.encode()) < 40
    total = sum(source["validation"]["tokens"] for source in pack.manifest["sources"])
    assert total == pack.validation_tokens
    with pytest.raises(UserError, match=r"no source 'three'; its sources are: one, two"):
        pack.validation(source="three", length=5)


def test_reading(pack: Pack) -> None:
    stream = pack.train(batch_size=4, length=16, seed=3)
    assert stream.batch(0).shape == (4, 17)
    assert pack.decode(stream.batch(0)[0]) in pack.decode(pack.tokens("train"))
    evaluation = pack.validation(tokens=64, length=16, batch_size=3)
    assert [tuple(batch.shape) for batch in evaluation] == [(3, 17), (1, 17)]
    with pytest.raises(UserError, match=r"test/bytes is smaller than one batch"):
        pack.train(batch_size=5_000, length=16)
    with pytest.raises(ValueError, match="read-only"):
        pack.tokens("train")[0] = 1


def test_pickle(pack: Pack) -> None:
    _ = pack.tokenizer
    content = pickle.dumps(pack)
    assert len(content) < 1_000
    again = pickle.loads(content)
    assert again.sha256 == pack.sha256
    stream = pickle.loads(pickle.dumps(pack.train(batch_size=2, length=8)))
    assert stream.batch(3).equal(pack.train(batch_size=2, length=8).batch(3))


# --- damage

FIX = "Delete this folder and run the same command again"


def edit(pack: Pack, change: Callable[[dict], object]) -> None:  # type: ignore[type-arg]
    path = pack.folder / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    change(manifest)
    path.write_text(json.dumps(manifest), encoding="utf-8")


@pytest.mark.parametrize("name", ["train.bin", "validation.bin"])
@pytest.mark.parametrize("change", [-2, -1, 2])
def test_truncated_or_longer_file(pack: Pack, name: str, change: int) -> None:
    path = pack.folder / name
    content = path.read_bytes()
    path.write_bytes(content[:change] if change < 0 else content + b"\0\0")
    with pytest.raises(UserError, match=rf"is damaged: {name} has {len(content) + change:,} bytes, the man.*{FIX}"):
        open_pack(pack.folder)


@pytest.mark.parametrize("name", ["train.bin", "validation.bin", "tokenizer.json", "manifest.json"])
def test_missing_file(pack: Pack, name: str) -> None:
    (pack.folder / name).unlink()
    with pytest.raises(UserError, match=rf"is damaged: {name} is missing.*{FIX}"):
        open_pack(pack.folder)


@pytest.mark.parametrize("name", ["train.bin", "validation.bin", "tokenizer.json"])
def test_edited_file_is_found_by_verify(pack: Pack, name: str) -> None:
    path = pack.folder / name
    content = bytearray(path.read_bytes())
    content[4] ^= 1
    path.write_bytes(content)
    open_pack(pack.folder)  # same size: the quick check cannot see it
    with pytest.raises(UserError, match=rf"is damaged: {name} has SHA-256.*{FIX}"):
        open_pack(pack.folder, verify=True)


def test_edited_manifest(pack: Pack) -> None:
    edit(pack, lambda m: m.update(sha256="0" * 64))
    with pytest.raises(UserError, match=r"manifest\.json was edited"):
        open_pack(pack.folder, verify=True)
    edit(pack, lambda m: m["splits"]["train"].update(tokens=7))
    with pytest.raises(UserError, match=r"train\.bin has .* the manifest says 14 bytes"):
        open_pack(pack.folder)
    edit(pack, lambda m: m["splits"]["train"].pop("tokens"))
    with pytest.raises(UserError, match=r"lacks an entry \('tokens'\)"):
        open_pack(pack.folder)
    edit(pack, lambda m: m.update(schema=99))
    with pytest.raises(UserError, match="has the manifest schema 99, this release reads 1"):
        open_pack(pack.folder)
    (pack.folder / "manifest.json").write_text('{"schema": 1,')
    with pytest.raises(UserError, match=rf"is not JSON.*{FIX}"):
        open_pack(pack.folder)


def test_not_a_pack(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a pack: it has no manifest\.json"):
        open_pack(tmp_path)
    with pytest.raises(UserError, match="`steepest data prepare` prints"):
        open_pack(tmp_path / "absent")
