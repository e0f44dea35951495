"""What is left of a plot of Matplotlib: what can be seen."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench.drawing import draw, slim

PLOT = """<svg xmlns:xlink="http://www.w3.org/1999/xlink" width="576pt" height="324pt" viewBox="0 0 576 324"
 xmlns="http://www.w3.org/2000/svg"><metadata>by whom</metadata><defs><style>*{stroke-linejoin: round}</style></defs>
<g id="figure_1"><path d="M 0 324 \nL 576 324 \nz\n" style="fill: none"/>
<g><path d="M 36.404146 293.498979 \nL 36.95 3 \n" clip-path="url(#p)" style="fill: none; stroke: #000000"/></g>
<g><path d="M 1 2 \nL 3.04 -0.01 \n" style="fill: none; stroke: #000000"/></g>
<g><path d="M 5 6 \nL 7 8 \n" style="fill: none; stroke: #0072b2; stroke-dasharray: 5.92,2.56"/></g>
<g><defs><path id="mabc" d="M 0 1 \nz\n" style="stroke: #0072b2"/></defs>
<use xlink:href="#mabc" x="55.94" y="8.61" style="fill: #0072b2; stroke: #0072b2"/></g>
<g><text style="font-size: 10px; font-family: 'DejaVu Sans'; text-anchor: middle" x="58.0625" y="304.59"
 transform="rotate(-0 58.0625 304.59)">a &lt; b</text></g>
<g><text style="font-size: 12px" x="1" y="2" transform="rotate(-90 1.06 2)">up</text></g></g></svg>"""


def test_what_is_seen_is_kept_and_nothing_else() -> None:
    root = ElementTree.fromstring(slim(PLOT))
    paths = [each.attrib for each in root.findall("{*}path")]
    assert paths == [
        {"stroke": "currentColor", "d": "M36.4 293.5L37 3M1 2L3 0"},
        {"stroke": "#0072b2", "stroke-dasharray": "5.92 2.56", "d": "M5 6L7 8"},
    ]
    assert [each.attrib for each in root.findall("{*}defs/{*}path")] == [{"id": "m0", "d": "M0 1z"}]
    assert [each.attrib for each in root.findall("{*}use")] == [
        {"href": "#m0", "x": "55.9", "y": "8.6", "stroke": "#0072b2", "fill": "#0072b2"}
    ]
    assert [(each.text, each.attrib) for each in root.findall("{*}text")] == [
        ("a < b", {"x": "58.1", "y": "304.6", "text-anchor": "middle"}),
        ("up", {"x": "1", "y": "2", "transform": "rotate(-90 1.1 2)", "font-size": "12px"}),
    ]


def test_the_same_figure_makes_the_same_file(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra `bench` is not installed")
    found = []
    for name in ("a", "b"):
        draw(tmp_path / name / "plot.svg", lambda axes: axes.plot([1, 2, 3], [1, 4, 9], "o-", label="squares"))
        found.append((tmp_path / name / "plot.svg").read_text())
    assert found[0] == found[1]
    assert len(found[0]) < 4_000
