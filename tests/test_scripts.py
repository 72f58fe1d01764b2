"""What bash cannot run is known from its beginning."""

from __future__ import annotations

import pytest

from eval_sidecar.system.scripts import why_no_shell_script


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("eval.py", b"import os\n", "is Python"),
        ("eval.py", b"#!/usr/bin/env python3\n", "is Python"),
        ("eval", b"#!/opt/conda/bin/python3.11 -u\n", "is Python"),
        ("eval", b"#!/usr/bin/env -S PYTHONUNBUFFERED=1 python3 -u\n", "is Python"),
        ("eval", b"# evaluates\n\nimport torch\n", "is Python"),
        ("eval", b"from pathlib import Path\n", "is Python"),
        ("eval", b'"""Evaluates."""\n', "is Python"),
        ("eval.py", b"import os\r\nprint()\r\n", "is Python"),
        ("eval.sh", b"#!/bin/bash\r\necho\r\n", "Windows line ends (CRLF)"),
        ("eval.sh", b"echo a\r\necho b\r\n", "Windows line ends (CRLF)"),
        ("eval.sh", b"#!/bin/bash\r\necho a\necho b\necho c\n", "Windows line ends (CRLF)"),
        ("eval.sh", b"\xef\xbb\xbf#!/bin/bash\necho\n", "byte order mark"),
        ("eval.sh", "#!/bin/bash\n".encode("utf-16"), "not UTF-8 text"),
        ("eval", b"\x7fELF\x02\x01\0", "not UTF-8 text"),
        ("eval.pl", b"#!/usr/bin/perl -w\n", "is for perl"),
        ("eval.R", b"#!/usr/bin/env Rscript\n", "is for Rscript"),
    ],
)
def test_it_is_named_with_what_to_do(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content)
    assert words in (why_no_shell_script(path) or "")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("eval.sh", b"#!/usr/bin/env bash\npython eval.py\n"),
        ("eval.sh", b"#!/bin/sh -e\n"),
        ("eval.sh", b"#! /usr/bin/env -S bash -e\n"),
        ("eval", b"set -e\nexport A=1\npython3 - <<'X'\nimport os\nX\n"),
        ("eval.py", b"#!/bin/bash\n"),
        ("eval.sh", b"#!/bin/bash\ncat <<X\nGET /\r\nX\necho\n"),
        ("eval.sh", "#!/bin/zsh\n# 评测\n".encode()),
        ("eval.sh", b""),
        ("eval.sh", b"importance=1\nfrom_here=2\n"),
    ],
)
def test_a_shell_script_is_taken(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    assert why_no_shell_script(path) is None
