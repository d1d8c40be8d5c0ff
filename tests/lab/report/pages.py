"""Reads a report page back with the standard library's parser."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """Tags with attributes, text by section, scripts, the headline table, and tags that were not closed properly."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.errors: list[str] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.sections: dict[str, str] = {}
        self.rows: list[list[dict]] = []
        self._section = "header"
        self._in_headline = False
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if tag in VOID:
            return
        self.open.append(tag)
        if tag == "section":
            self._section = attributes["id"]
        if tag == "script":
            self.scripts.append((attributes, ""))
        if tag == "table":
            self._in_headline = attributes.get("class") == "headline"
        if self._in_headline and tag == "tr":
            self.rows.append([])
        if self._in_headline and tag in ("td", "th"):
            self.rows[-1].append({"text": "", **attributes})
        elif self._in_headline and tag in ("small", "span"):
            self.rows[-1][-1]["text"] += " "

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.errors.append(f"</{tag}> at {self.getpos()}")
        if tag == "table":
            self._in_headline = False

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            attributes, code = self.scripts[-1]
            self.scripts[-1] = (attributes, code + data)
        elif self.open and self.open[-1] != "style":
            self.sections[self._section] = self.sections.get(self._section, "") + " " + data
            if self._in_headline and self.rows and self.rows[-1]:
                self.rows[-1][-1]["text"] += data

    @property
    def charts(self) -> dict:
        (code,) = [code for attributes, code in self.scripts if attributes.get("id") == "charts"]
        return json.loads(code, parse_constant=lambda name: 1 / 0)  # NaN is no JSON

    @property
    def headline(self) -> list[dict[str, dict]]:
        """Body rows of the headline table by column title."""
        rows = [[{**cell, "text": " ".join(cell["text"].split())} for cell in row] for row in self.rows]
        titles = [cell["text"] for cell in rows[0]]
        return [dict(zip(titles, row, strict=True)) for row in rows[1:]]

    def words(self, section: str) -> str:
        return " ".join(self.sections.get(section, "").split())
