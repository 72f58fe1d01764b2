"""README's table of files names everything that we write, in both languages, and nothing else."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from pathlib import Path

import pytest

from eval_sidecar import paths
from eval_sidecar.system.logs import KEPT
from readmes import READMES, named_in

ROOT = Path(__file__).resolve().parents[1]

#: What the folders are called in README.
PLACES = {
    paths.ResultPaths: ["results"],
    paths.StatePaths: ["state/wandb_eval_sidecar", "state/wandb_eval_uploader"],
    paths.LedgerPaths: [
        "state/wandb_eval_sidecar/<model>_<hash>.json",
        "state/wandb_eval_uploader/<model>_<hash>.json",
    ],
    paths.ManagerPaths: ["log/eval_sidecar"],
    paths.EvaluationPaths: ["log/eval_sidecar/evaluations"],
    paths.JobPaths: ["log/eval_sidecar/evaluations/<model>/checkpoint-<step>.log"],
    paths.PinPaths: ["<parent>/.eval-sidecar"],
    paths.TemporaryPaths: ["$TMPDIR"],
    paths.UserPaths: ["~/.local/state/eval-sidecar"],
}
#: Whatever a path is made of, as README writes it.
VALUES = {
    "model": "<model>",
    "step": "<step>",
    "checkpoint": "checkpoint-<step>",
    "instance": "<instance>",
    "token": "<token>",
    "job": "<job>",
    "run_id": "r",
    "run": "r",
}
#: Folders, not files of their own, and what only one of the two kinds of state has.
ELSEWHERE = {
    "log/eval_sidecar/evaluations",
    "$TMPDIR/eval-sidecar-<uid>",
    "state/wandb_eval_sidecar/.seen",
    "state/wandb_eval_sidecar/wandb.log",
    "state/wandb_eval_uploader/<model>_<hash>.retry",
    "state/wandb_eval_uploader/<model>_<hash>.wandb.log",
}
#: What stands in the table and is no path of ours: names that the system, W&B or an ending makes.
OTHERS = {
    "….before-unpack-<hash>",
    "log/eval_sidecar/<instance>.log.1",
    "….wandb.log.1",
    f".{KEPT}",
    "$TMPDIR/eval-sidecar-<random>",
    "$TMPDIR/eval-sidecar-wandb-<random>",
    "wandb/offline-run-…",
    "….corrupt",
    "….unreadable",
    "….failed",
}


def shown(path: Path) -> str:
    """A path as README writes it."""
    text = re.sub(r"(?<![0-9a-z])[0-9a-f]{12,20}(?![0-9a-z])", "<hash>", str(path))
    return text.replace(f"eval-sidecar-{paths.os.getuid()}", "eval-sidecar-<uid>")


def paths_of(kind: type, place: str) -> set[str]:
    """Every path that one of the classes makes below a folder."""
    made = kind(Path(place))
    found = set()
    for name, member in inspect.getmembers(kind):
        if name.startswith("_") or name in ("beside", "of_environment"):
            continue
        if isinstance(member, property):
            found.add(shown(getattr(made, name)))
        else:
            wanted = list(inspect.signature(member).parameters)[1:]
            values = {
                **VALUES,
                "folder": Path("<folder>"),
                "model_dir": Path("<model>") if "lock" in name else "<model>",
                "step": "<step>",
            }
            found.add(shown(member(made, **{word: values[word] for word in wanted})))
    return found


def written() -> set[str]:
    return {
        path for kind, places in PLACES.items() for place in places for path in paths_of(kind, place)
    } - ELSEWHERE


def by_the_evaluator() -> set[str]:
    """Names that the evaluator gives its files; it shares no code with us."""
    source = (ROOT / "src/eval_sidecar/genrec/output.py").read_text(encoding="utf-8")
    names = re.findall(r'_write\(folder / "([^"]+)"', source)
    return {f"results/<model>/checkpoint-<step>/{name}" for name in names}


@pytest.mark.parametrize("readme", READMES)
def test_the_table_of_files_names_each_path_that_is_written(readme):
    known = written() | by_the_evaluator() | {"results/<model>/checkpoint-<step>/provenance.json"}
    assert sorted(known - named_in(readme)) == []


@pytest.mark.parametrize("readme", READMES)
def test_the_table_of_files_names_nothing_that_is_not_written(readme):
    known = written() | by_the_evaluator() | {"results/<model>/checkpoint-<step>/provenance.json"}
    assert sorted(named_in(readme) - known - OTHERS) == []


def test_every_class_of_paths_is_frozen_and_has_its_place_in_the_table():
    kinds = {
        value
        for value in vars(paths).values()
        if inspect.isclass(value) and value.__module__ == paths.__name__
    }
    assert kinds == set(PLACES)
    assert all(kind.__dataclass_params__.frozen for kind in kinds if dataclasses.is_dataclass(kind))


#: Endings and names that only paths.py may give; the evaluator has its own.
OWN_NAMES = re.compile(
    r"^\.(?:seen|retry|lock|exit|pid|held|links|unpack|before-unpack)|\.(?:lock|retry|exit|pid|wandb\.log)$"
    r"|(?:^|/)(?:provenance|metrics)\.json$|\.(?:wandb_eval|pack|unpacked)[\w.]*json$|^\.eval-sidecar$"
)
#: Made by somebody else, or for as long as one check lasts.
LET_BE = {
    "cli/warming.py": {"*.pid"},  # of the evaluator's processes
    "cli/doctor.py": {"metrics.json"},  # text of a point that is never read
}


@pytest.mark.parametrize(
    "module",
    [
        str(path.relative_to(ROOT / "src/eval_sidecar"))
        for path in sorted((ROOT / "src/eval_sidecar").rglob("*.py"))
        if "genrec" not in path.parts and path.name != "paths.py"
    ],
)
def test_no_other_module_gives_a_file_one_of_our_names(module):
    tree = ast.parse((ROOT / "src/eval_sidecar" / module).read_text(encoding="utf-8"))
    texts = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    names = {text for text in texts if " " not in text and "\n" not in text and OWN_NAMES.search(text)}
    assert names - LET_BE.get(module, set()) == set()
