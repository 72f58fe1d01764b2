"""What both READMEs show: blocks of commands, code within sentences, and the table of files."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
READMES = ("README.md", "README.zh-CN.md")


def text_of(readme: str) -> str:
    return (ROOT / readme).read_text(encoding="utf-8")


def blocks_of(readme: str) -> list[list[str]]:
    """The commands of every block of shell, without comments; one that goes on in the next line is one."""
    found = []
    for block in re.findall(r"^```bash\n(.*?)^```", text_of(readme), re.M | re.S):
        lines = re.sub(r"\s+#.*", "", block.replace("\\\n", " ")).splitlines()
        found.append([" ".join(line.split()) for line in lines if line.strip()])
    return found


def inline_code(readme: str) -> list[str]:
    """Code within sentences and tables, outside the blocks."""
    outside = re.sub(r"^```.*?^```", "", text_of(readme), flags=re.M | re.S)
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", outside)]


def named_in(readme: str) -> set[str]:
    """The paths in the first column of the table; a name alone is in the folder of the one before."""
    text = text_of(readme)
    (table,) = re.findall(
        r"^\| (?:path \| what|路径 \| 内容) \|\n\| --- \| --- \|\n((?:\|.*\n)+)", text, re.M
    )
    found = set()
    for row in table.splitlines():
        folder = ""
        first = re.sub(r"<[^>]*sft-root[^>]*>", "<parent>", row.split(" | ")[0])
        for name in re.findall(r"`([^`]+?)/?`", first):
            is_whole = name.startswith(
                ("results", "state/", "log/", "<parent>", "$TMPDIR", "~", "wandb/", "…")
            )
            if is_whole or name == ".3":
                folder = name.rpartition("/")[0] if is_whole else folder
                found.add(name)
            else:
                found.add(f"{folder}/{name}")
    return found
