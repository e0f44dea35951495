"""Plots as small SVG files: text is text, coordinates are rounded, each line is one path, and the colours suit a light
and a dark page. Matplotlib draws; what it writes is far longer, because each letter and each tick is a shape.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

_SVG = "http://www.w3.org/2000/svg"
_LINK = "{http://www.w3.org/1999/xlink}href"
_NUMBER = re.compile(r"-?\d+\.\d+")
_INK = ("#000000", "black")
_KEPT = ("stroke", "stroke-width", "stroke-dasharray", "stroke-opacity", "fill", "text-anchor", "font-size")
_FONT_SIZE = "10px"
# A rule for an element is stronger than its attributes, so what paths inherit is said of the whole.
_STYLE = (
    "svg{color:#1b1f24;fill:none;stroke-linejoin:round;font:10px 'DejaVu Sans',Verdana,sans-serif}"
    "rect{fill:#fff}text{fill:currentColor}"
    "@media(prefers-color-scheme:dark){svg{color:#e6eaef}rect{fill:#14181d}}"
)


def draw(path: Path, paint: Callable[[Any], None]) -> None:
    """Write the figure that ``paint`` draws on axes. The same figure makes the same file."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": path.name})
    from matplotlib import pyplot

    path.parent.mkdir(parents=True, exist_ok=True)
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    paint(axes)
    axes.grid(visible=True, alpha=0.3)
    axes.tick_params(which="both", length=0)
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None}, transparent=True)
    pyplot.close(figure)
    path.write_text(slim(drawn.getvalue()))


def slim(text: str) -> str:
    """An SVG of Matplotlib without what cannot be seen. Paths that look the same become one."""
    root = ElementTree.fromstring(text)
    shapes: dict[tuple[str, tuple[tuple[str, str], ...]], ElementTree.Element] = {}
    markers: dict[str, str] = {}
    for number, element in enumerate(root.iter()):
        kind = element.tag.removeprefix(f"{{{_SVG}}}")
        looks = _looks(element)
        if kind == "path" and "id" in element.attrib:
            markers[f"#{element.attrib['id']}"] = f"m{len(markers)}"
            marker = {"id": f"m{len(markers) - 1}", "d": _path(element)}
            shapes[f"marker {number}", ()] = ElementTree.Element("path", marker)
        elif kind == "path" and set(looks) - {"stroke-width"}:
            first = shapes.setdefault((kind, tuple(looks.items())), ElementTree.Element(kind, {**looks, "d": ""}))
            first.set("d", first.attrib["d"] + _path(element))
        elif kind == "use":
            link = {"href": f"#{markers[element.attrib[_LINK]]}"}
            shapes[f"use {number}", ()] = ElementTree.Element(kind, {**link, **_place(element), **looks})
        elif kind == "text":
            shapes[f"text {number}", ()] = ElementTree.Element(kind, {**_place(element), **looks})
            shapes[f"text {number}", ()].text = element.text
    return _document(root.attrib["viewBox"], list(shapes.values()))


def _document(box: str, shapes: list[ElementTree.Element]) -> str:
    """The markers are definitions; everything else is drawn, one element a line."""
    width, height = box.split()[2:]
    lines = [
        f'<svg xmlns="{_SVG}" viewBox="{box}" width="{width}pt" height="{height}pt">',
        f"<style>{_STYLE}</style>",
        '<rect width="100%" height="100%"/>',
    ]
    defined = [_line(shape) for shape in shapes if "id" in shape.attrib]
    if defined:
        lines += ["<defs>", *defined, "</defs>"]
    lines += [_line(shape) for shape in shapes if "id" not in shape.attrib]
    return "\n".join([*lines, "</svg>"]) + "\n"


def _line(shape: ElementTree.Element) -> str:
    return ElementTree.tostring(shape, encoding="unicode").replace(" />", "/>")


def _looks(element: ElementTree.Element) -> dict[str, str]:
    """What is seen of an element, as attributes. Black is the colour of the page's text."""
    pairs = [each.split(":", 1) for each in element.get("style", "").split(";") if ":" in each]
    style = {key.strip(): value.strip() for key, value in pairs}
    shown = {key: style[key] for key in _KEPT if key in style}
    if shown.get("fill") == "none":
        del shown["fill"]
    if shown.get("font-size") == _FONT_SIZE:
        del shown["font-size"]
    return {key: "currentColor" if value in _INK else value.replace(",", " ") for key, value in shown.items()}


def _place(element: ElementTree.Element) -> dict[str, str]:
    """Where it is, and how it is turned if it is."""
    found = {name: _rounded(element.attrib[name]) for name in ("x", "y", "transform") if name in element.attrib}
    return {name: value for name, value in found.items() if not value.startswith("rotate(-0 ")}


def _path(element: ElementTree.Element) -> str:
    return re.sub(r" ?([A-Za-z]) ?", r"\1", _rounded(" ".join(element.attrib["d"].split())))


def _rounded(text: str) -> str:
    """The text with at most one place in each number."""
    return _NUMBER.sub(lambda found: f"{round(float(found[0]), 1) + 0.0:g}", text)
