"""The package as a wheel, installed and used far from any checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path
from typing import Optional

import pytest

pytest.importorskip("hatchling")

from toolbox import CHECKOUT

pytestmark = [pytest.mark.genrec, pytest.mark.xdist_group("wheel")]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that pip makes of a source distribution, as of a checkout."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.run(build, cwd=CHECKOUT, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


class Installed:
    """An environment with the wheel in it and, of all else, what the running one has."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        venv.create(folder, with_pip=False, symlinks=True)
        self.python = folder / "bin" / "python"
        self.command = folder / "bin" / "eval-sidecar"
        pip = [sys.executable, "-m", "pip", "--python", str(self.python)]
        subprocess.run(
            [
                *pip,
                "install",
                "--quiet",
                "--no-deps",
                "--no-index",
                "--disable-pip-version-check",
                str(wheel),
            ],
            check=True,
        )
        (site,) = folder.glob("lib/python*/site-packages")
        self.package = site / "eval_sidecar"
        ours = {str(CHECKOUT), str(CHECKOUT / "src"), str(CHECKOUT / "tests"), sysconfig.get_path("stdlib")}
        others = [path for path in sys.path if path and path not in ours and Path(path).is_dir()]
        (site / "others.pth").write_text("\n".join(others))

    def run(
        self, *arguments: str, cwd: Path, env: Optional[dict[str, str]] = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.command), *arguments],
            cwd=cwd,
            env={"PATH": os.environ["PATH"], "HOME": str(cwd), **(env or {})},
            capture_output=True,
            text=True,
            check=False,
            timeout=200,
        )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Installed:
    return Installed(tmp_path_factory.mktemp("envi ronment"), wheel)


@pytest.fixture
def folder(tiny, tmp_path: Path) -> Path:
    """A folder that holds a model and its data, and nothing of ours."""
    model = tmp_path / "saves" / "model"
    model.mkdir(parents=True)
    (model / "checkpoint-5").symlink_to(tiny.checkpoint)
    for name in ("test.json", "id2sid.json"):
        (tmp_path / name).write_bytes((tiny.folder / name).read_bytes())
    return tmp_path


ONCE = ["once", "--sft-root", "saves/model", "--disable-wandb", "--cuda-list", "cpu", "--num-beams", "10"]
ONCE += ["--test-data-path", "test.json", "--index-path", "id2sid.json", "--checkpoint-ready-seconds", "0"]


def metrics(folder: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((folder / "results/model/checkpoint-5/metrics.json").read_text())
    return found


def test_a_wheel_brings_all_modules_and_the_evaluation_script(wheel: Path) -> None:
    package = CHECKOUT / "src" / "eval_sidecar"
    sources = {f"eval_sidecar/{path.relative_to(package)}" for path in package.rglob("*.py")}
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        script = archive.read("eval_sidecar/evaluate_sft_3b.sh")
    assert sources | {"eval_sidecar/py.typed"} <= names
    assert script == (CHECKOUT / "evaluate_sft_3b.sh").read_bytes()


def test_once_in_a_folder_without_a_checkout_evaluates_with_the_script_of_the_package(installed, folder):
    done = installed.run(*ONCE, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert metrics(folder).keys() >= {"HR@10", "NDCG@10"}
    assert f"{installed.package}/evaluate_sft_3b.sh, which comes with eval-sidecar" in done.stderr


def test_a_python_without_torch_gives_way_to_the_one_that_runs_the_sidecar(installed, folder):
    bare = folder / "bare"
    bare.write_text(f"#!/bin/sh\nexec '{sys.executable}' -S \"$@\"\n")
    bare.chmod(0o755)
    done = installed.run(*ONCE, "--python-bin", str(bare), cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    log = folder / "log/eval_sidecar/evaluations/model/checkpoint-5.log"
    assert f"{bare} has no torch and transformers: using {installed.python}\n" in log.read_text()


def test_another_python_evaluates_without_anything_of_the_sidecars_environment(installed, folder):
    """Its libraries may be for another version of Python."""
    (installed.package.parent / "tokenizers.py").write_text("raise SystemExit('of the other environment')")
    try:
        done = installed.run(*ONCE, "--python-bin", sys.executable, cwd=folder)
    finally:
        (installed.package.parent / "tokenizers.py").unlink()
    assert done.returncode == 0, done.stdout + done.stderr
    assert metrics(folder)


def test_a_model_is_evaluated_by_hand(installed, folder):
    variables = {"TEST_DATA_PATH": "test.json", "INDEX_PATH": "id2sid.json", "NUM_BEAMS": "10"}
    done = installed.run("evaluate", "saves/model", cwd=folder, env={**variables, "CUDA_LIST": "cpu"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert metrics(folder)


def test_results_are_packed_and_brought_in_without_a_checkout(installed, tmp_path):
    (tmp_path / "there/results/model/checkpoint-5").mkdir(parents=True)
    (tmp_path / "there/results/model/checkpoint-5/metrics.json").write_text('{"HR@10": 0.5}')
    (tmp_path / "here").mkdir()
    packed = installed.run("pack", cwd=tmp_path / "there")
    assert packed.returncode == 0, packed.stdout + packed.stderr
    (archive,) = (tmp_path / "there").rglob("*.tar.gz")
    unpacked = installed.run("unpack", str(archive), cwd=tmp_path / "here")
    assert unpacked.returncode == 0, unpacked.stdout + unpacked.stderr
    assert metrics(tmp_path / "here") == {"HR@10": 0.5}


def advice(installed: Installed, extra: str) -> str:
    code = "import sys; from eval_sidecar.installation import install_command as c; print(c(sys.argv[1]))"
    done = subprocess.run(
        [str(installed.python), "-c", code, extra], capture_output=True, text=True, check=True, cwd="/"
    )
    return done.stdout.strip()


def test_the_advice_to_install_names_the_wheel_while_it_is_there_and_then_what_is_needed(
    tmp_path: Path, wheel: Path
) -> None:
    mine = tmp_path / "my wheels" / wheel.name
    mine.parent.mkdir()
    mine.write_bytes(wheel.read_bytes())
    installed = Installed(tmp_path / "environment", mine)
    command = advice(installed, "genrec")
    assert command == f"{installed.python} -m pip install '{mine}[genrec]'"
    subprocess.run(["bash", "-c", f"{command} --dry-run --no-deps --no-index --quiet"], check=True)
    mine.unlink()
    command, _, needed = advice(installed, "genrec").partition(" install ")
    assert command == f"{installed.python} -m pip"
    assert sorted(needed.split()) == ["'torch>=2.4'", "'transformers>=4.51'", "tokenizers"]
