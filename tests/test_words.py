"""Plain words: what we print and write down reads as the field talks."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "eval_sidecar"

SOURCES = sorted(PACKAGE.rglob("*.py"))
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md")

NOUNS = (
    "valid|JSON|file|folder|directory|link|name|address|number|set|text|index|bundle|tar|part|receipt|manifest|"
    "model|checkpoint|weights|results?|metrics?|points?"
)
#: What is not written, and the better word. Case does not matter; a blank also stands for a line's end.
ODDITIES = {
    r"by (somebody|anybody)('s hand)?": "by a user",
    r"\b(cancelled|given|written|evaluated|set|made|changed) by hand\b": "by a user",
    r"\bvanish(es|ed)?\b": "disappeared",
    r"\bmend(s|ed|ing)?\b": "fix",
    r"\bmay not be (read|written|looked)\b": "permission denied",
    rf"(?<!\bthere )\b(is|are) no ({NOUNS})\b": "is not a …",
    r"\b(is|are) no (news|proof)\b": "is not news, does not prove",
    r"\bbytes that are no\b": "bytes that are not",
    r"\bthere but unknown\b": "on the server only",
    r"\bnext pass (looks|tries|sees)\b": "will retry",
    r"\bso many (seconds|minutes|times|bytes|results|checkpoints|models|names)\b": "n seconds, n times",
    r"\b(None|empty|nothing|none|False|True|-1) where\b": "… if",
    r"\b[A-Z]\w*Error: where\b": "if",
    r"\bwhere (it is missing|there is none|there are none|nothing is|nobody|it has none)\b": "if",
    r"\bfor ever\b": "forever, or: without end",
    r"\b(written|made|begins?|installed?) anew\b": "again",
    r"\bas (often|many) as one likes\b": "any number",
    r"\bin front of the eyes\b": "visible",
    r"\bwhoever (opens|reads|uploads|unpacks|calls|waits|is told)\b": "name who: the caller, the upload",
    r"\b(no|any) sound (header|note|length|one)\b": "valid",
    r"\bthat nobody (needs|misses|waits)\b": "that is no longer needed",
    r"(?<!`)\banew\b": "again",
    r"\blies (in|beside|below|directly)\b": "is in",
    r"\b(somebody|anybody|whoever)\b": "a user, another process",
    r"\bis not there yet\b": "does not exist yet",
    r"\bput aside\b": "set aside, or: renamed",
    r"\b(is|are) there twice\b": "appears twice",
}

#: First words of a docstring that describe instead of saying what the function does.
NOT_IMPERATIVE = re.compile(
    r"(Returns|Reads|Writes|Gives|Makes|Raises|Says|Takes|Checks|Finds|Lists|Whether|What|Why|How|Where|Who|Which|"
    r"The|A|An|One|All|Every|Its|This)\b"
)


def texts_of(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of every docstring and message, and of every block of comments, in a module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
        elif isinstance(node, ast.JoinedStr):
            # What is filled in stands for any word.
            parts = (part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
            yield node.lineno, "".join(map(str, parts))
    block: list[str] = []
    last = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            if block and token.start[0] != last + 1:
                yield last, " ".join(block)
                block = []
            block.append(token.string.lstrip("#: "))
            last = token.start[0]
    if block:
        yield last, " ".join(block)


def odd_words(text: str) -> list[str]:
    """What is odd in a text, each with the better word."""
    plain = " ".join(text.split())
    return [
        f"{found[0]!r}: write {better!r}"
        for pattern, better in ODDITIES.items()
        for found in re.finditer(pattern, plain, re.IGNORECASE)
    ]


def odd_lines(path: Path) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{line}: {odd}"
        for line, text in texts_of(path.read_text(encoding="utf-8"))
        for odd in odd_words(text)
    ]


def padded_splats(source: str) -> list[int]:
    """Lines of tuples and lists of constants that are unpacked on the spot: ``f(*(a, b))``."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Starred) and isinstance(node.value, (ast.Tuple, ast.List))
    ]


def descriptive_summaries(source: str) -> list[str]:
    """Functions, but for properties, whose docstring describes: "Returns" or "The" instead of "Return"."""
    return [
        f"{node.lineno}: {node.name}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and not any("property" in ast.dump(decorator) for decorator in node.decorator_list)
        and NOT_IMPERATIVE.match(ast.get_docstring(node) or "")
    ]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_messages_docstrings_and_comments_use_plain_words(path):
    assert odd_lines(path) == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_is_unpacked_to_please_a_formatter(path):
    assert padded_splats(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_docstring_says_what_a_function_does(path):
    assert descriptive_summaries(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "path",
    [path for pattern in DOCUMENTS for path in sorted(ROOT.glob(pattern))],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_the_documents_use_plain_words(path):
    lines = path.read_text(encoding="utf-8")
    assert [f"{path.relative_to(ROOT)}: {odd}" for odd in odd_words(lines)] == []


@pytest.mark.parametrize(
    "text",
    [
        "cancelled by somebody's hand",
        "the evaluation vanished",
        "model.safetensors may not be read by this user",
        "metrics.json is no file",
        "is no\nvalid JSON",
        "the next pass looks again",
        "so many seconds",
        "None where there is no file.",
        "    StateError: where it cannot be saved.",
    ],
)
def test_each_odd_word_of_the_list_is_found(text):
    assert odd_words(text)


@pytest.mark.parametrize(
    "text",
    [
        "the folder where evaluations look",
        "there is no file of this name",
        "where it goes: --output-dir",
        "a recommendation, amended in the commandments",
        "n seconds, by the clock",
    ],
)
def test_plain_words_are_let_through(text):
    assert odd_words(text) == []


def test_words_are_found_in_messages_docstrings_and_comments():
    source = '''
def f(x):
    """Return x; None where it has none."""
    # This has vanished, and the next pass
    # looks again.
    raise E(f"{x} is no file" " at all")
'''
    found = [odd for _, text in texts_of(source) for odd in odd_words(text)]
    assert len({odd.partition(":")[0] for odd in found}) == 5, found


def test_splats_and_descriptions_are_found():
    assert padded_splats("f(*(a, b))\nf(*c)\nf(*[a])") == [1, 3]
    assert descriptive_summaries("@property\ndef f(self):\n    '''The x.'''") == []
    assert descriptive_summaries('def f():\n    """Returns x."""\ndef g():\n    """Return x."""') == ["1: f"]
