"""Opens a page in headless Chromium and presses all its buttons, with nothing but the browser."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)

# Presses every button, remembers what each figure shows afterwards, and leaves the answers in the title of the page.
PROBE = """
"use strict";
window.addEventListener("load", () => setTimeout(async () => {
  const pause = () => new Promise((done) => setTimeout(done, 60));
  const shows = (element) => ({
    drawn: element.querySelectorAll(".main-svg").length,
    marks: element.querySelectorAll(".scatterlayer .trace, .barlayer .point, .heatmaplayer .hm").length,
    traces: element.data.length,
    x: element.layout.xaxis.title.text,
    // what is drawn, as one number
    state: [...JSON.stringify(element.data.map((t) => [t.x, t.y, t.z]))].reduce(
      (sum, c) => (31 * sum + c.charCodeAt(0)) % 1000000007, 7),
    width: element.querySelector(".main-svg") ? element.querySelector(".main-svg").clientWidth : 0,
    room: element.clientWidth,
  });
  const figures = {};
  for (const element of document.querySelectorAll("[data-chart]")) figures[element.dataset.chart] = shows(element);
  const pressed = [];
  for (const button of document.querySelectorAll("[data-control]")) {
    if (button.disabled) continue;
    button.focus();
    const first = button.getAttribute("aria-pressed") === "true";
    const focused = document.activeElement === button;
    button.click();
    await pause();
    const { chartOf, control, value } = button.dataset;
    const group = [...button.parentElement.children].filter((b) => b.getAttribute("aria-pressed") === "true");
    const element = document.getElementById("chart-" + chartOf);
    const alone = group.length === 1 && group[0] === button;
    pressed.push({ figure: chartOf, control, value, first, focused, alone, ...shows(element) });
  }
  for (const summary of document.querySelectorAll("summary")) summary.click();
  for (const button of document.querySelectorAll(".copy")) { button.click(); await pause(); }
  const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  document.title = "PROBE " + JSON.stringify({ figures, pressed, wide });
}, 400));
"""


@dataclass
class Visit:
    """What the browser found, and what it complained about."""

    figures: dict[str, dict[str, Any]]
    pressed: list[dict[str, Any]]
    wide: int
    console: list[str]


def visit(page: Path, folder: Path, width: int = 1200) -> Visit:
    """Open a copy of the page that admits one more script, and report."""
    source = page.read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(PROBE.encode()).digest()).decode()
    source = source.replace("script-src ", f"script-src 'sha256-{digest}' ", 1)
    copy = folder / "probed.html"
    copy.write_text(source.replace("</body>", f"<script>{PROBE}</script></body>"), encoding="utf-8")
    command = [
        str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        f"--user-data-dir={folder / 'profile'}", "--proxy-server=127.0.0.1:9", "--enable-logging=stderr",
        f"--window-size={width},2000", "--virtual-time-budget=30000", "--dump-dom", copy.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    title = re.search(r"<title>PROBE (.*?)</title>", done.stdout, re.S)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert title, f"the page never answered:\n{done.stderr[-2000:]}"
    return Visit(**json.loads(html.unescape(title[1])), console=console)
