"""Where the package lies, what comes with it, and the advice to install what it lacks."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, Optional

import pytest

from eval_sidecar.installation import install_command, is_own_evaluation_script, own_evaluation_script
from toolbox import CHECKOUT

REQUIRES = (
    "Requires-Dist: click>=8.1\n"
    "Provides-Extra: wandb\n"
    "Requires-Dist: wandb!=0.24.0,>=0.19.10; extra == 'wandb'\n"
    "Provides-Extra: genrec\n"
    "Requires-Dist: torch>=2.4; (python_version >= '3.9') and extra == 'genrec'\n"
    'Requires-Dist: tokenizers; extra == "genrec"\n'
)


def advice(site: Path, extra: str) -> str:
    """What is advised where the package is installed in a folder."""
    code = (
        "import sys; from eval_sidecar.installation import install_command as c; print(c(sys.argv[1], 'py'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, extra],
        cwd=site.parent,
        env={**os.environ, "PYTHONPATH": str(site)},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return done.stdout.strip()


@pytest.fixture
def install(tmp_path: Path):
    """Return a function that installs the module as pip does, from some origin."""

    def make(origin: Optional[dict[str, Any]]) -> Path:
        site = tmp_path / "site"
        metadata = site / "eval_sidecar-0.1.0.dist-info"
        metadata.mkdir(parents=True)
        (site / "eval_sidecar").mkdir()
        for name in ("__init__.py", "installation.py"):
            (site / "eval_sidecar" / name).write_bytes((CHECKOUT / "src/eval_sidecar" / name).read_bytes())
        (metadata / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: eval-sidecar\nVersion: 0.1.0\n{REQUIRES}"
        )
        if origin is not None:
            (metadata / "direct_url.json").write_text(json.dumps(origin))
        return site

    return make


def test_in_a_checkout_the_advice_is_to_install_the_checkout():
    command = shlex.split(install_command("wandb", "/some/python"))
    assert command[:4] == ["/some/python", "-m", "pip", "install"]
    assert command[4:] in ([f"{CHECKOUT}[wandb]"], ["-e", f"{CHECKOUT}[wandb]"])


def test_without_an_extra_the_package_alone_is_installed():
    assert shlex.split(install_command("", "py"))[-1] == str(CHECKOUT)


def test_a_wheel_that_is_still_there_is_installed_with_the_extra(install, tmp_path: Path):
    wheel = tmp_path / "my wheels #1" / "eval_sidecar-0.1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    wheel.touch()
    site = install({"url": wheel.as_uri(), "archive_info": {}})
    assert advice(site, "wandb") == f"py -m pip install '{wheel}[wandb]'"


@pytest.mark.parametrize("origin", [None, {"url": "file:///gone/eval_sidecar-0.1.0-py3-none-any.whl"}, {}])
@pytest.mark.parametrize(
    ("extra", "needed"),
    [("genrec", "'torch>=2.4' tokenizers"), ("wandb", "'wandb!=0.24.0,>=0.19.10'"), ("", "'click>=8.1'")],
)
def test_if_the_wheel_is_gone_what_the_extra_needs_is_installed(install, origin, extra: str, needed: str):
    assert advice(install(origin), extra) == f"py -m pip install {needed}"


@pytest.mark.parametrize(
    ("origin", "place"),
    [
        ({"url": "https://example.org/e.whl", "archive_info": {}}, "https://example.org/e.whl"),
        (
            {"url": "https://example.org/e.git", "vcs_info": {"vcs": "git", "commit_id": "0a1b"}},
            "git+https://example.org/e.git@0a1b",
        ),
    ],
    ids=["archive", "git"],
)
def test_what_came_from_a_server_comes_from_there_again(install, origin, place: str):
    assert advice(install(origin), "wandb") == f"py -m pip install 'eval-sidecar[wandb] @ {place}'"


def test_the_evaluation_script_is_told_by_its_content_not_by_its_name(tmp_path: Path):
    own = own_evaluation_script()
    assert own == CHECKOUT / "evaluate_sft_3b.sh" and own.is_file()
    copy, other = tmp_path / "mine.sh", tmp_path / own.name
    copy.write_bytes(own.read_bytes())
    other.write_text("true\n")
    own_ones = [is_own_evaluation_script(path) for path in (own, copy, other, tmp_path / "none")]
    assert own_ones == [True, True, False, False]


def test_the_package_holds_a_link_to_the_script_that_a_wheel_turns_into_a_copy():
    link = CHECKOUT / "src/eval_sidecar/evaluate_sft_3b.sh"
    assert link.read_bytes() == own_evaluation_script().read_bytes()


def test_the_root_script_says_how_to_install_what_it_lacks(tmp_path: Path):
    for name in ("pyproject.toml", "eval_wandb_sidecar.py"):
        (tmp_path / name).write_bytes((CHECKOUT / name).read_bytes())
    for name in ("__init__.py", "installation.py"):
        target = tmp_path / "src/eval_sidecar" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((CHECKOUT / "src/eval_sidecar" / name).read_bytes())
    done = subprocess.run(
        [sys.executable, "-S", "eval_wandb_sidecar.py", "status"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"]},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    (line,) = done.stdout.splitlines()
    assert "has no click, filelock" in line
    assert " pip install " in line and line.endswith(str(tmp_path))
