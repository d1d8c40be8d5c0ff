"""Corpora by name, the split, the cleaning of news-wiki, the generated corpus."""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import math
import random
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from steepest.lab.data.corpora import CORPORA, corpus
from steepest.lab.data.documents import Document, Survey, bucket_of, limit, take
from steepest.lab.data.news_wiki import news_articles, repair_quotes, wiki_leads
from steepest.lab.data.synthetic import Synthetic
from steepest.lab.errors import UserError

# --- names


def test_every_listed_corpus_can_be_named(tmp_path: Path) -> None:
    for name in CORPORA:
        if name != "text" and ":" not in name:
            assert corpus(name, cache=tmp_path).name == name
    assert corpus(None, cache=tmp_path).name == "news-wiki"


def test_misspelt_name_gets_the_closest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown corpus 'newswiki'\. Did you mean 'news-wiki'"):
        corpus("newswiki", cache=tmp_path)
    with pytest.raises(UserError, match="'fineweb-edu'"):
        corpus("fineweb_edu", cache=tmp_path)


def test_options_that_do_not_go_together(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'synthetic' is not one"):
        corpus("synthetic", cache=tmp_path, repo="someone/something")
    with pytest.raises(UserError, match="give its file or folder"):
        corpus("text", cache=tmp_path)


def test_text_takes_the_place_of_a_name(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    assert corpus("news-wiki", cache=tmp_path, text=tmp_path).name == "text"


# --- the split and the limits


def test_bucket_is_sha1_modulo_100() -> None:
    for text in (b"", b"one", "zwölf".encode()):
        assert bucket_of(text) == int(hashlib.sha1(text).hexdigest(), 16) % 100


def test_split_is_stable_when_documents_are_reordered_or_added() -> None:
    texts = [f"document {i}".encode() for i in range(3_000)]
    held = {text for text in texts if bucket_of(text) < 2}
    assert 30 < len(held) < 95
    shuffled = random.Random(0).sample([*texts, *(b"new" + text for text in texts)], k=6_000)
    assert {text for text in shuffled if bucket_of(text) < 2 and not text.startswith(b"new")} == held


def documents(*texts: str) -> list[Document]:
    return [Document(text, "source") for text in texts]


def test_take_stops_at_either_limit_and_drops_empty_documents() -> None:
    many = documents("aaaa", "  \n", "éé", "", "cccc", "dddd")
    assert [d.text for d in take(iter(many), None, math.inf)] == ["aaaa", "éé", "cccc", "dddd"]
    assert [d.text for d in take(iter(many), 2, math.inf)] == ["aaaa", "éé"]
    assert [d.text for d in take(iter(many), None, 8)] == ["aaaa", "éé"]  # 4 + 4 bytes
    assert [d.text for d in take(iter(many), None, 9)] == ["aaaa", "éé", "cccc"]
    endless = (Document(str(i), "source") for i in itertools.count())
    assert len(list(take(endless, 5, math.inf))) == 5


def test_limit() -> None:
    assert limit(None, 7.0) == 7.0
    assert limit(math.inf, 7.0) == math.inf
    for wrong in (0, -1, math.nan):
        with pytest.raises(UserError, match="max_bytes must be at least 1"):
            limit(wrong, 7.0)


def test_smallest_percent() -> None:
    survey = Survey()
    for i in range(20):
        survey.add(f"text {i}".encode())
    lowest = min(bucket_of(f"text {i}".encode()) for i in range(20))
    assert survey.smallest_percent(1) == lowest + 1
    assert survey.smallest_percent(50) == 50
    alone = Survey()
    alone.add(b"one document")
    with pytest.raises(UserError, match=r"1 document\(s\) \(12 bytes\).*at least two"):
        alone.smallest_percent(2)


# --- news-wiki


def news_archive(*rows: tuple[str, str]) -> bytes:
    lines = ["article_id,publish_date,article_source_link,title,subtitle,text"]
    lines += [f'{i},2017,link,{title},,"{text}"' for i, (title, text) in enumerate(rows)]
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        archive.writestr("NewsArticles.csv", "\n".join(lines))
    return memory.getvalue()


def test_news_drops_near_duplicates_and_lost_bodies() -> None:
    body = " ".join(f"word{i}" for i in range(80))
    rows = [
        ("First", f" {body} end"),
        ("Second", body.upper().replace(" ", ", ") + " another end"),  # the same first 200 characters
        ("Third", "-1"),
        ("Fourth", "another " + body),
    ]
    articles = list(news_articles(news_archive(*rows)))
    assert [article.split("\n")[0] for article in articles] == ["First", "Fourth"]
    assert articles[0] == f"First\n{body} end"


def test_an_article_may_be_longer_than_the_csv_module_allows_by_default() -> None:
    assert len(next(news_articles(news_archive(("Long", "word " * 60_000))))) > 131_072
    assert csv.field_size_limit() == 131_072


@pytest.mark.parametrize(
    ("broken", "repaired"),
    [
        ('not "risky"?given the', 'not "risky" given the'),
        ('build bridges,"?he said', 'build bridges," he said'),
        ('a good environment."?It was', 'a good environment." It was'),
        ('people "?and under', "people - and under"),
        ('said. "\ufffdOnce again', 'said. "Once again'),
        ('is it "good"? Yes', 'is it "good"? Yes'),
        ('"Why?" she asked', '"Why?" she asked'),
        ("plain text", "plain text"),
    ],
)
def test_quotes_are_repaired(broken: str, repaired: str) -> None:
    assert repair_quotes(broken) == repaired


def test_wiki_leads() -> None:
    content = {"A": {"title": "A", "extract": " Lead of A. "}, "B": {"title": "B", "extract": "Lead of B."}}
    assert list(wiki_leads(json.dumps(content).encode())) == ["Lead of A.", "Lead of B."]


# --- synthetic


def text_of(count: int, seed: int = 0) -> list[str]:
    return [document.text for document in itertools.islice(Synthetic(seed).documents(), count)]


def test_synthetic_is_deterministic_and_grows_at_its_end() -> None:
    assert text_of(300)[:130] == text_of(130)
    assert text_of(3) != text_of(3, seed=1)
    digest = hashlib.sha256("\n".join(text_of(130)).encode()).hexdigest()
    assert digest[:16] == "732b8d3c1f0d3492"


def test_synthetic_has_zipf_words_and_a_memory() -> None:
    words = " ".join(text_of(400)).lower().replace(".", "").replace(",", "").split()
    counts = Counter(words)
    assert 1_500 < len(counts) <= 2_000
    frequencies = sorted(counts.values(), reverse=True)
    assert frequencies[0] > 5 * frequencies[40] > 5 * frequencies[400]
    # Knowing the last word helps: the entropy of the next one falls by more than a bit.
    pairs = Counter(itertools.pairwise(words))
    bits = sum(n * math.log2(counts[a] / n) for (a, _), n in pairs.items()) / len(words)
    alone = sum(n * math.log2(len(words) / n) for n in counts.values()) / len(words)
    assert bits < alone - 1


def test_synthetic_documents_have_sentences() -> None:
    for text in text_of(20):
        assert text[0].isupper()
        assert text.endswith(".")
        assert 40 <= len(text.split()) <= 400
