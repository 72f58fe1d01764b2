"""evaluate_sft_3b.sh, run by bash: what it hands to Python, and one evaluation through it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.genrec

SCRIPT = Path(__file__).parents[2] / "evaluate_sft_3b.sh"

#: Stands for a Python that has the libraries, and shows what it was called with.
STUB = """#!/bin/sh
[ "$1" = -c ] && exit 0
printf '%s\\n' "$PYTHONPATH" "$@" > "$STUB_OUTPUT"
"""


@pytest.fixture
def call(tmp_path):
    """Return a function that runs the script on a stub and returns the arguments that Python got."""
    stub = tmp_path / "py thon's"
    stub.write_text(STUB)
    stub.chmod(0o755)

    def run(root, code=0, **variables):
        output = tmp_path / "arguments"
        output.unlink(missing_ok=True)
        environment = {"PATH": os.environ["PATH"], "PYTHON_BIN": str(stub), "STUB_OUTPUT": str(output)}
        done = subprocess.run(
            ["bash", str(SCRIPT), str(root)],
            cwd=tmp_path, env={**environment, **variables}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        return output.read_text().splitlines() if code == 0 else done.stderr

    return run


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "sa ves" / "it's a model"
    for name in ("checkpoint-1000", "checkpoint-30", "checkpoint-200", "checkpoint-x", "runs"):
        (folder / name).mkdir(parents=True)
    return folder


def checkpoints(arguments):
    return [arguments[place + 1] for place, word in enumerate(arguments) if word == "--checkpoint"]


def values(arguments):
    return dict(zip(arguments[::2], arguments[1::2], strict=False))


def test_every_checkpoint_is_evaluated_in_ascending_order(call, root):
    found = checkpoints(call(f"{root}/"))
    assert found == [f"{root}/checkpoint-{step}" for step in (30, 200, 1000)]


def test_a_checkpoint_may_be_given_as_the_root(call, root):
    assert checkpoints(call(root / "checkpoint-30")) == [f"{root}/checkpoint-30"]


def test_the_list_holds_names_and_absolute_paths(call, root):
    found = checkpoints(call(root, CKPT_LIST=" checkpoint-30\n/else/checkpoint-7\tcheckpoint-* "))
    assert found == [f"{root}/checkpoint-30", "/else/checkpoint-7", f"{root}/checkpoint-*"]


def test_a_list_that_is_one_folder_may_hold_spaces(call, root):
    path = str(root / "checkpoint-200")
    assert checkpoints(call(root, CKPT_LIST=path)) == [path]


def test_the_variables_reach_their_flags(call, root):
    arguments = call(
        root, CATEGORY="Of fice", CUDA_LIST="0 1", BATCH_SIZE="3", MAX_NEW_TOKENS="9", NUM_BEAMS="7",
        TEMPERATURE="0.5", DO_SAMPLE="True", LENGTH_PENALTY="1.5", SID_LEVELS="2", SEED="1",
        TEST_DATA_PATH="/d/te st.json", TRUST_REMOTE_CODE="True",
    )  # fmt: skip
    _, *arguments = arguments
    package = SCRIPT.parent / "src/eval_sidecar"
    assert arguments[:2] == [str(package / "genrec/start.py"), "eval_sidecar.genrec.cli"]
    assert {
        "--devices": "0 1", "--batch-size": "3", "--max-new-tokens": "9", "--num-beams": "7",
        "--temperature": "0.5", "--do-sample": "True", "--length-penalty": "1.5", "--sid-levels": "2",
        "--seed": "1", "--test-data": "/d/te st.json", "--index": "data/Of fice/id2sid.json",
        "--output-root": "results", "--trust-remote-code": "True",
    }.items() <= values(arguments).items()  # fmt: skip


def test_the_defaults_are_those_of_the_evaluator(call, root):
    arguments = call(root)[1:]
    assert {
        "--devices": "0", "--batch-size": "8", "--max-new-tokens": "256", "--num-beams": "50",
        "--temperature": "1.0", "--do-sample": "False", "--length-penalty": "0.0", "--sid-levels": "-1",
        "--seed": "42", "--test-data": "data/Industrial_and_Scientific/sft/test.json",
        "--trust-remote-code": "False",
    }.items() <= values(arguments).items()  # fmt: skip


def test_what_is_missing_is_one_line(call, root, tmp_path):
    assert call(root / "runs", code=2) == f"error: {root}/runs: holds no checkpoint-<step> folder\n"
    assert call(tmp_path / "none", code=2) == f"error: {tmp_path}/none: no such folder\n"
    assert call("", code=2).startswith("error: usage: ")


def test_a_python_without_torch_gives_way_to_the_one_beside_the_script(tmp_path, root):
    copy = tmp_path / "re po"
    (copy / ".venv" / "bin").mkdir(parents=True)
    (copy / "evaluate_sft_3b.sh").write_text(SCRIPT.read_text())
    beside = copy / ".venv" / "bin" / "python"
    command = ["bash", str(copy / "evaluate_sft_3b.sh"), str(root)]
    output = tmp_path / "arguments"
    bare = tmp_path / "bin"
    bare.mkdir()
    (bare / "python3").symlink_to("/bin/false")
    path = f"{bare}{os.pathsep}{os.environ['PATH']}"
    environment = {"PATH": path, "PYTHON_BIN": "false", "STUB_OUTPUT": str(output)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: false is not a Python that runs") and "set PYTHON_BIN" in line
    beside.write_text(STUB)
    beside.chmod(0o755)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == f"false has no torch and transformers: using {beside}\n"
    assert output.is_file()


def test_paths_that_begin_with_a_dash_are_no_flags(call, tmp_path):
    (tmp_path / "-mo del" / "checkpoint-5").mkdir(parents=True)
    arguments = call("-mo del/", TEST_DATA_PATH="-test.json", INDEX_PATH="-index.json")
    assert checkpoints(arguments) == ["./-mo del/checkpoint-5"]
    assert {"--test-data": "./-test.json", "--index": "./-index.json"}.items() <= values(
        arguments[1:]
    ).items()
    assert checkpoints(call(tmp_path, CKPT_LIST="-mo del/checkpoint-5")) == [
        f"{tmp_path}/-mo del/checkpoint-5"
    ]


def test_no_name_of_a_folder_is_run_or_breaks_the_line(call, tmp_path):
    name = "a $(touch pwned) `touch pwned` 'b' \"c\" *\n\x1b[31m"
    (tmp_path / name / "checkpoint-5").mkdir(parents=True)
    arguments = "\n".join(call(tmp_path / name, CKPT_LIST=str(tmp_path / name / "checkpoint-5")))
    assert f"--checkpoint\n{tmp_path}/{name}/checkpoint-5\n--test-data" in arguments
    refused = call(tmp_path / name / "checkpoint-5\n", code=2)
    assert refused.count("\n") == 1 and "\x1b" not in refused
    assert not list(tmp_path.rglob("pwned"))


def test_a_folder_named_as_a_library_is_none(tmp_path, root):
    for name in ("torch", "transformers"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    bare = tmp_path / "python"
    bare.write_text(f"#!/bin/sh\nexec '{sys.executable}' -S \"$@\"\n")
    bare.chmod(0o755)
    (tmp_path / "python3").symlink_to(bare)
    (tmp_path / "id2sid.json").write_text('{"a": ["<a_1>"]}')
    row = dict.fromkeys(("system", "instruction", "input"), "") | {"output": "<a_1>"}
    (tmp_path / "test.json").write_text(json.dumps([row]))
    (tmp_path / "evaluate_sft_3b.sh").write_text(SCRIPT.read_text())
    (tmp_path / "src").symlink_to(SCRIPT.parent / "src")
    environment = {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "PYTHON_BIN": str(bare), "INDEX_PATH": "id2sid.json", "TEST_DATA_PATH": "test.json", "NUM_BEAMS": "1",
    }  # fmt: skip
    done = subprocess.run(
        ["bash", "evaluate_sft_3b.sh", str(root)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2
    assert line.startswith("error: torch, transformers, tokenizers not installed in ")
    assert line.endswith(f" pip install --python {sys.executable} '{SCRIPT.parent}[genrec]'"), line


def test_an_evaluation_runs_through_the_script(tiny, tmp_path):
    folder = tmp_path / 'it\'s a "place"'
    for name in ("torch", "transformers"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text("raise SystemExit('a folder of the user was run')")
    model = folder / "mo del"
    model.symlink_to(tiny.folder / "model")
    for name in ("id2sid.json", "test.json"):
        (folder / f"the {name}").write_text((tiny.folder / name).read_text())
    environment = {
        **os.environ, "PYTHON_BIN": sys.executable,
        "CKPT_LIST": str(model / "checkpoint-5"), "NUM_BEAMS": "10",
        "TEST_DATA_PATH": str(folder / "the test.json"), "INDEX_PATH": str(folder / "the id2sid.json"),
        "CUDA_LIST": "cpu",
    }  # fmt: skip
    done = subprocess.run(
        ["bash", str(SCRIPT), str(model)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "10 of 10 rows (100%)" in done.stderr
    metrics = json.loads((folder / "results" / "mo del" / "checkpoint-5" / "metrics.json").read_text())
    assert list(metrics) == [f"{kind}@{cutoff}" for cutoff in (1, 3, 5, 10) for kind in ("HR", "NDCG")]
