"""Pages, docstrings, comments and messages are plain English: one word for each thing, no idiom of another language.

The list of words is short on purpose: each entry was found in many places and has a plain replacement. Code, whether in
a block or in a line, is not prose. What is left in Python files is counted in ``LEFT``, which only ever becomes less.
"""

from __future__ import annotations

import ast
import inspect
import io
import re
import tokenize
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from ovs_hotswap.upgrade.steps import upgrade_plan

ROOT = Path(__file__).parents[2]

# A pattern, and what to write instead. docs/glossary.md has the words that have one name only.
BANNED = {
    r"fail-over(s)?": "failover",
    r"roll-back(s)?": "rollback",
    r"hand-over(s)?": "handover",
    r"take-over(s)?": "takeover",
    r"road(s)?": "back-end mode",
    r"anew": "again",
    r"meanwhile": "in the meantime, or say during what",
    r"no more(?! than\b| \w+ than\b)": "no longer",
    r"(let|lets|letting) go": "release",
    r"(go|goes|going|went) on": "continue",
    r"come(s)? round": "complete a round",
    r"whoever": "name who acts",
    r"(some|no)body": "name who acts",
    r"mend(s|ed|ing)?": "fix, repair",
    r"(is|are) told": "hears, or say who tells",
    r"for ever": "indefinitely",
    r"amiss": "wrong",
    r"gone on with": "continued",
    r"thereby|thereof|therein": "say by, of or in what",
}  # fmt: skip

# Words of the list, and docstrings that are fragments, that may still be there. Lower it as you remove some.
LEFT = {"ovs_hotswap": 0, "ansible": 0, "tests": 5, "bench": 0, "tools": 0}
_SENTENCE = 3  # words that make a string a message for people, and not a name

_FRAGMENT = re.compile(r"(Of|The same|As|Those|Also|Not)\b")  # a docstring that begins so has no subject, or no verb
_FENCE = re.compile(r"^(```|~~~)")
_CODE = re.compile(r"``(?:[^`\n]|\n(?!\n))+``|`(?:[^`\n]|\n(?!\n))*`")
_FILE = re.compile(r"`((?:[\w.@-]+/)+[\w.@-]*|(?:test_)\w+\.py)`")  # a path, a directory with its slash, or a test
_TARGET = re.compile(r"(?<=\]\()[^)]*")
_LINK = re.compile(r"\[[^]]*\]\(([^)\s]+)\)")
_PATTERN = re.compile("|".join(rf"\b(?:{pattern})\b" for pattern in BANNED), re.IGNORECASE)


def pages() -> list[str]:
    patterns = ("*.md", "docs/**/*.md", "*patches/**/*.md", "tests/**/*.md", "ansible/**/*.md")
    return sorted(path.relative_to(ROOT).as_posix() for pattern in patterns for path in ROOT.glob(pattern))


def prose(text: str) -> str:
    """A page without code blocks, code in the line and the targets of links; each line stays where it is."""
    lines, inside = [], False
    for line in text.splitlines():
        fence = _FENCE.match(line.strip()) is not None
        lines.append("" if inside or fence or line.startswith(("    ", "  ovs-hotswap ")) else line)
        inside ^= fence
    blank = partial(re.sub, r"[^\n]", " ")
    return _TARGET.sub("", _CODE.sub(lambda code: blank(code[0]), "\n".join(lines)))


def faults(text: str) -> list[str]:
    lines = enumerate(prose(text).splitlines(), 1)
    return [f"line {number}: {found[0]!r}" for number, line in lines for found in _PATTERN.finditer(line)]


def python_prose(source: str) -> Iterator[str]:
    """Comments, docstrings and the strings of a module that are long enough to be a sentence."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.string.lstrip("# ")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value.split()) >= _SENTENCE:
            yield inspect.cleandoc(node.value)


def fragments(source: str) -> list[str]:
    """The first lines of docstrings that begin in the middle of a sentence."""
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    texts = (ast.get_docstring(node) for node in ast.walk(ast.parse(source)) if isinstance(node, kinds))
    return [text.splitlines()[0] for text in texts if text and _FRAGMENT.match(text)]


def python_faults(directory: str) -> dict[str, list[str]]:
    """The words of the list, and the docstrings that are fragments, of each module that has any."""
    found = {}
    for path in sorted((ROOT / directory).rglob("*.py")):
        source = path.read_text()
        words = [fault.partition(": ")[2] for text in python_prose(source) for fault in faults(text)]
        if path != Path(__file__) and (both := words + fragments(source)):
            found[path.relative_to(ROOT).as_posix()] = both
    return found


def anchors(text: str) -> set[str]:
    """As GitHub makes them of headings: lower case, without punctuation, hyphens for spaces."""
    headings = [line.lstrip("#").strip().lower() for line in text.splitlines() if line.startswith("#")]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in headings}


def broken_links(name: str, text: str) -> Iterator[str]:
    for target in _LINK.findall(_CODE.sub("", text)):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        there = (ROOT / name).parent / path
        lost = path and not there.exists()
        if lost or (anchor and anchor not in anchors(there.read_text() if path else text)):
            yield target


def missing_files(text: str) -> list[str]:
    """Modules and directories of this repository that a page names and that are not there."""
    places = (ROOT, ROOT / "ovs_hotswap", ROOT / "tests", ROOT / "tests/unit", ROOT / "tests/integration")
    named = {name for name in _FILE.findall(text) if name.endswith(".py") or (name.endswith("/") and len(name) > 3)}
    return sorted(name for name in named if not any((place / name).exists() for place in places))


@pytest.mark.parametrize("page", pages())
def test_a_page_is_plain_english(page: str) -> None:
    assert faults((ROOT / page).read_text()) == []


@pytest.mark.parametrize("page", pages())
def test_the_modules_that_a_page_names_exist(page: str) -> None:
    assert missing_files((ROOT / page).read_text()) == []


def test_the_page_of_the_architecture_has_the_steps_of_an_upgrade() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    table = text.partition("## The plan")[2].partition("The rules of the engine")[0]
    cells = (line.split("|")[1] for line in table.splitlines() if line.startswith("| `"))
    shape = upgrade_plan().shape
    assert [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)] == [*shape.before, *shape.after]


@pytest.mark.parametrize("directory", LEFT)
def test_python_files_do_not_get_worse(directory: str) -> None:
    found = python_faults(directory)
    assert sum(map(len, found.values())) <= LEFT[directory], found


def test_the_check_sees_comments_docstrings_and_messages_and_no_names() -> None:
    source = 'def f():\n    """Nobody."""\n    # made anew\n    raise Error("it goes on now", "anew", road=1)\n'
    assert sorted(word for text in python_prose(source) for word in faults(text)) == [
        "line 1: 'anew'",
        "line 1: 'goes on'",
    ]


def test_the_check_sees_a_docstring_that_is_a_fragment() -> None:
    source = '"""Of a VM."""\ndef f():\n    """Asks the switch."""\ndef g():\n    """The same of many."""\n'
    assert fragments(source) == ["Of a VM.", "The same of many."]


@pytest.mark.parametrize("page", pages())
def test_links_lead_somewhere(page: str) -> None:
    assert list(broken_links(page, (ROOT / page).read_text())) == []


@pytest.mark.parametrize(
    "text",
    [
        "A fail-over takes a second.",
        "It is made anew.",
        "Nobody has the rings.",
        "A VM that is in the intent no more.",
        "The switch lets go of the rings.",
        "The upgrade goes on.",
        "There are two roads.",
    ],
)
def test_the_check_sees_a_word_that_is_banned(text: str) -> None:
    assert len(faults(f"A heading\n\n{text}\n")) == 1


@pytest.mark.parametrize(
    "text",
    [
        "`broker take-over` is a command, and `broker\ntake-over` is it, too.",
        "It takes no more than 10 ms, and no more memory than before.",
        "```\nroad = broker\n```",
        "    goes on",
        "[limits](take-over.md)",
        "A broad roadmap, and commended amendments.",
        "``NOBODY``: there is no owner; ``Ring.anew`` is a field.",
    ],
)
def test_the_check_leaves_code_and_other_words_alone(text: str) -> None:
    assert faults(text) == []


def test_the_check_sees_a_module_that_is_gone() -> None:
    text = "`plan/executor.py`, `tests/nowhere.py`, `test_prose.py`, `test_nothing.py`, `docs/`, `b/`, `x.py`"
    assert missing_files(text) == ["test_nothing.py", "tests/nowhere.py"]


def test_the_check_sees_a_link_that_leads_nowhere() -> None:
    text = "# The plan\n\n[a](#the-plan) [b](#no-plan) [c](README.md) [d](nowhere.md) [e](https://example.org/x)"
    assert list(broken_links("README.md", text)) == ["#no-plan", "nowhere.md"]
