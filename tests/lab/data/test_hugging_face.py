"""Corpora through Hugging Face `datasets`, on local files and without a network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from steepest.lab.data import prepare
from steepest.lab.data.corpora import corpus
from steepest.lab.data.documents import bucket_of
from steepest.lab.data.hugging_face import HuggingFace, join_articles, parse
from steepest.lab.errors import UserError

LINES = [f"This is line {i} of a text that a dataset could hold." for i in range(400)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A local dataset for the "text" builder."""
    folder = tmp_path / "dataset"
    folder.mkdir()
    (folder / "train.txt").write_text("\n".join(LINES) + "\n")
    return folder


def test_parse() -> None:
    assert parse("hf:owner/Name") == HuggingFace("name", "owner/Name")
    assert parse("hf:owner/name:config") == HuggingFace("name", "owner/name", "config")
    assert parse("hf:owner/name:config:body") == HuggingFace("name", "owner/name", "config", "body")
    assert parse("hf:owner/name::body") == HuggingFace("name", "owner/name", None, "body")
    for wrong in ("hf:", "hf::config", "hf:a/b:c:d:e"):
        with pytest.raises(UserError, match="write hf:owner/name"):
            parse(wrong)


def test_repository_and_configuration_can_be_given(tmp_path: Path) -> None:
    changed = corpus("fineweb", cache=tmp_path, repo="mirror/fineweb", config="sample-100BT")
    assert changed.recipe() == {
        "name": "fineweb", "repo": "mirror/fineweb", "config": "sample-100BT", "column": "text",
    }  # fmt: skip
    assert corpus("fineweb", cache=tmp_path).recipe() != changed.recipe()


def test_a_pack_from_the_local_text_builder(folder: Path, tmp_path: Path) -> None:
    pack = prepare(f"hf:{folder}", cache=tmp_path / "cache", max_documents=300, progress=False)
    splits = pack.manifest["splits"]
    assert splits["train"]["documents"] + splits["validation"]["documents"] == 300
    assert set(pack.decode(pack.tokens("train")).split("<|endoftext|>")[:-1]) <= set(LINES)
    # Shuffled: the cap takes a sample, not the first lines.
    assert pack.decode(pack.tokens("train")[:20]) != LINES[0][:20]
    again = prepare(f"hf:{folder}", cache=tmp_path / "other", max_documents=300, progress=False)
    assert again.sha256 == pack.sha256
    assert pack.manifest["sources"][0]["origin"] == f"Hugging Face {folder}"


def test_a_streamed_corpus_without_a_validation_document(folder: Path, tmp_path: Path) -> None:
    training = [line for line in LINES if bucket_of(line.encode()) >= 2][:3]
    (folder / "train.txt").write_text("\n".join(training))
    with pytest.raises(UserError, match=r"none of the 3 documents.*--validation-percent (\d+)"):
        prepare(f"hf:{folder}", cache=tmp_path / "cache", progress=False)
    assert list((tmp_path / "cache" / "packs").iterdir()) == []


def test_unknown_column(folder: Path) -> None:
    with pytest.raises(UserError, match=r"no text in a column 'body'; its columns are: text\. Choose.*::COLUMN"):
        next(parse(f"hf:{folder}::body").documents())


def test_articles_are_joined(tmp_path: Path) -> None:
    lines = ["", " = First = ", "", " Text of it . ", " = = Section = = ", " More . ", " = Second = ", " Text . "]
    articles = list(join_articles(lines))
    assert [article.strip().split("\n")[0].strip() for article in articles[-2:]] == ["= First =", "= Second ="]
    assert "Section" in articles[-2]
    assert "".join(articles) == "".join(line + "\n" for line in lines)
    assert list(join_articles([" = A = \n", "b\n"])) == [" = A = \nb\n"]

    folder = tmp_path / "wiki"
    folder.mkdir()
    (folder / "train.txt").write_text("\n".join(lines))
    found = [d.text for d in HuggingFace("wiki", str(folder), articles=True).documents() if d.text.strip()]
    assert [text.split("\n")[0] for text in found] == [" = First = ", " = Second = "]


def test_datasets_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"needs the package datasets: pip install 'steepest\[hf\]'.*'news-wiki'"):
        prepare("c4", cache=tmp_path, progress=False)
    assert list((tmp_path / "packs").iterdir()) == []


def test_no_network_is_an_error_that_names_the_packaged_corpus(tmp_path: Path) -> None:
    code = (
        "from steepest.lab.data import prepare\n"
        "from steepest.lab.errors import UserError\n"
        "try:\n"
        f"    prepare('fineweb', cache={str(tmp_path)!r})\n"
        "except UserError as error:\n"
        "    print(error)\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "cannot read HuggingFaceFW/fineweb (sample-10BT) from Hugging Face: ConnectionError" in run.stdout
    assert "Nothing was put in its place" in run.stdout
    assert "'news-wiki'" in run.stdout
    assert list((tmp_path / "packs").iterdir()) == []


def test_the_network_goes_away_in_the_middle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Rows:
        def shuffle(self, **_: object) -> Rows:
            return self

        def __iter__(self):  # type: ignore[no-untyped-def]
            yield {"text": "first"}
            raise RuntimeError("connection closed by peer")

    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: Rows())
    with pytest.raises(UserError, match=r"cannot read allenai/c4.*RuntimeError: connection closed by peer"):
        prepare("c4", cache=tmp_path, progress=False)
    assert list((tmp_path / "packs").iterdir()) == []
