"""The report: JSON and one page that needs nothing else, with every level that was run."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from robot.config import UserError
from robot.log import Log
from sim2real.closed_loop import closed_loop
from sim2real.look import look
from sim2real.open_loop import open_loop
from sim2real.replay import replay
from sim2real.report import LEVELS, write
from sim2real.resimulate import predict
from sim2real.shadow import shadow
from tests.test_resimulate import record

SHORT: dict[str, Any] = {
    "level": "R1", "log": "/logs/a", "verdict": "different", "notes": ["low_cmd[<b>] differs"],
}  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, standing_policy: Path) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("logs")
    log = Log(record(folder, standing_policy, 6.8))
    return {
        "R0": look(log, folder, (0.0, 1.0)),
        "R1": replay(log, folder),
        "R2": predict(log, folder, (0.02, 0.1), 0.2),
        "R3": open_loop(log, folder, seconds=0.4),
        "R4": closed_loop(log, folder, seconds=0.4, repeats=1),
        "R5": shadow(log, folder, standing_policy),
    }


class Page(HTMLParser):
    """Tags, texts and images of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.images: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        given = dict(attrs)
        if tag == "img":
            self.images.append(given["src"] or "")
        self.links += [v or "" for k, v in attrs if k in ("href", "src", "srcset", "action")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, "tags are not nested"


def test_a_page_of_all_levels_needs_nothing_else(results, tmp_path):
    path = write(results, tmp_path / "report")
    text = path.read_text()
    page = Page(text)
    assert page.open == [] and page.tags.index("table") < page.tags.index("img")
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in page.links)
    assert not re.search(r"https?://|url\(|@import|<script|<link", text)
    assert len(page.images) == 6
    for image in page.images:
        assert base64.b64decode(image.split(",")[1]).startswith(b"\x89PNG")
    for level in results:
        assert f'id="{level}"' in text and all(len(one) > 20 for one in LEVELS[level])


def test_the_json_holds_every_figure(results, tmp_path):
    write(results, tmp_path)
    assert json.loads((tmp_path / "report.json").read_text()) == results


def test_levels_of_the_same_log_come_together_and_others_do_not(tmp_path):
    write({"R1": SHORT}, tmp_path)
    write({"R0": {**SHORT, "level": "R0"}}, tmp_path)
    assert list(json.loads((tmp_path / "report.json").read_text())) == ["R0", "R1"]
    write({"R0": {**SHORT, "level": "R0", "log": "/logs/b"}}, tmp_path)
    assert list(json.loads((tmp_path / "report.json").read_text())) == ["R0"]
    (tmp_path / "report.json").write_text("{torn")
    assert write({"R1": SHORT}, tmp_path).exists()


def test_text_of_a_log_is_text(tmp_path):
    text = write({"R1": {**SHORT, "log": "/logs/<i>x"}}, tmp_path).read_text()
    assert "low_cmd[&lt;b&gt;] differs" in text and "<b>" not in text and "<i>" not in text
    assert '<span class="bad">different</span>' in text


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="the report cannot be written"):
        write({"R1": SHORT}, tmp_path / "file" / "report")
    with pytest.raises(UserError, match="nothing to report"):
        write({}, tmp_path)
