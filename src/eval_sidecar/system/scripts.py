"""Whether a file can be run as ``bash FILE``, as far as its beginning tells."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Optional

_READ = 1 << 16
_SHELLS = re.compile(rb"(?:ba|da|z|k|a|)sh(?:\.exe)?$")
#: The first line with code of a Python file; not valid in a shell script.
_PYTHON = re.compile(rb"(?:from\s+[\w.]+\s+import\b|import\s+\w|def\s+\w+\(|class\s+\w|\"\"\"|'''|@\w)")


def why_no_shell_script(path: Path) -> Optional[str]:
    """Return why bash cannot run a file, and what to do; None if it looks runnable.

    Raises:
        OSError: if it cannot be read.
    """
    with path.open("rb") as file:
        text = file.read(_READ)
    if text.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in text:
        return "is not UTF-8 text, so bash cannot run it: save it as UTF-8, or give a script that calls it"
    lines = text.removeprefix(b"\xef\xbb\xbf").splitlines()
    program = _program(lines[0]) if lines else b""
    if b"python" in program or (not program and (path.suffix == ".py" or _looks_like_python(lines))):
        return (
            "is Python, and is run as `bash SCRIPT SFT_ROOT`: give a shell script that calls it, such as"
            f' `exec "${{PYTHON_BIN:-python3}}" {path.name} "$CKPT_LIST"`'
        )
    if program and not _SHELLS.search(program):
        name = program.decode(errors="replace")
        return f"is for {name}, and is run as `bash SCRIPT SFT_ROOT`: give a shell script that calls it"
    if text.startswith(b"\xef\xbb\xbf"):
        remove = f"sed -i '1s/^\\xEF\\xBB\\xBF//' {path}"
        return f"begins with a byte order mark, which bash takes for a command: {remove}"
    windows = text.count(b"\r\n")
    if windows and (windows * 2 > text.count(b"\n") or text.partition(b"\n")[0].endswith(b"\r")):
        return f"has Windows line ends (CRLF), which bash cannot run: sed -i 's/\\r$//' {path}"
    return None


def _program(first: bytes) -> bytes:
    """Return the program in a ``#!`` line, without its folder; empty if there is none."""
    if not first.startswith(b"#!"):
        return b""
    words = [word for word in first[2:].split() if not word.startswith(b"-")]
    if words and words[0].rpartition(b"/")[2] == b"env":
        words = [word for word in words[1:] if b"=" not in word]
    return words[0].rpartition(b"/")[2] if words else b""


def _looks_like_python(lines: list[bytes]) -> bool:
    for line in lines:
        if line.strip() and not line.lstrip().startswith(b"#"):
            return _PYTHON.match(line) is not None
    return False
