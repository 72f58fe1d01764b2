"""The rules of the house, read off the sources: one way for imports, one place to print, small files."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "eval_sidecar"
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in sorted(PACKAGE.rglob("*.py"))
}

#: The order of everything, as CONTRIBUTING shows it: a module imports only what stands above it.
LAYERS = re.search(
    r"## Where things go\n.*?```\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.S
)
#: What a room may import of other rooms; errors, types, paths and installation are for all but genrec.
ROOMS = {
    "genrec": set(),
    "system": set(),
    "ledger": {"system"},
    "checkpoints": {"system", "ledger"},
    "manifest": {"system", "ledger", "checkpoints"},
    "launchers": {"system"},
    "readers": {"system", "ledger"},
    "trackers": {"system"},
    "evaluation": {"system", "ledger", "checkpoints", "manifest", "launchers"},
    "delivery": {"system", "ledger", "manifest", "trackers"},
    "transfer": {"system", "ledger", "manifest"},
    "report": {"ledger", "checkpoints"},
    "diagnosis": {"system", "checkpoints"},
}


def module_of(name: str) -> str:
    """The module of ours that an imported name comes from, without the package's name."""
    own = name.partition("eval_sidecar")[2].lstrip(".")
    while own and own not in MODULES and f"{own}.__init__" not in MODULES:
        own = own.rpartition(".")[0]
    return own if own in MODULES else f"{own}.__init__".lstrip(".")


def imports_of(path: Path) -> Iterator[str]:
    """Every module of ours that a file imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where they lead"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (module_of(name) for name in names if name.partition(".")[0] == "eval_sidecar")


IMPORTS = {module: set(imports_of(path)) for module, path in MODULES.items()}


def is_in(module: str, folder: str) -> bool:
    return module == folder or module.startswith(f"{folder}.")


def in_folder(folder: str) -> list[str]:
    found = [module for module in MODULES if is_in(module, folder)]
    assert found, f"nothing is called {folder} any more: adapt the rule"
    return found


def importers(folder: str) -> set[str]:
    """Modules outside a folder that import from it."""
    in_folder(folder)
    return {
        module
        for module, imported in IMPORTS.items()
        if not is_in(module, folder) and any(is_in(name, folder) for name in imported)
    }


def layers() -> list[str]:
    """Every module in the order in which CONTRIBUTING names it."""
    assert LAYERS, "CONTRIBUTING.md shows no layers"
    room, found = "", []
    for line in LAYERS[1].splitlines():
        room = line[:13].strip() or room
        found += [f"{room}.{name}".lstrip(".") for name in line[13:].split()]
    return found


ORDER = layers()


def test_contributing_names_every_module_once():
    named = {module for module in MODULES if not module.endswith(("__init__", "__main__"))}
    assert sorted(ORDER) == sorted(named | {"genrec.__main__"})


@pytest.mark.parametrize("module", ORDER)
def test_a_module_imports_only_what_stands_above_it(module):
    above = {*ORDER[: ORDER.index(module)], "__init__"}
    above |= {f"{name.rpartition('.')[0]}.__init__" for name in ORDER}
    assert IMPORTS[module] <= above


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_the_rooms_that_it_may(room):
    imported = {
        name.partition(".")[0] for module in in_folder(room) for name in IMPORTS[module] if "." in name
    }
    assert imported - {room} == ROOMS[room]


@pytest.mark.parametrize("room", ["evaluation", "delivery", "diagnosis"])
def test_who_decides_knows_contracts_and_no_adapter(room):
    for module in in_folder(room):
        adapters = {name for name in IMPORTS[module] if name.startswith(("launchers.", "trackers."))}
        assert adapters <= {"launchers.base", "trackers.base"}, module


@pytest.mark.parametrize("folder", ["launchers", "trackers"])
def test_adapters_import_no_other_adapter(folder):
    for module in in_folder(folder):
        family = module.partition("_")[0]  # trackers.wandb and its trackers.wandb_*
        others = {
            name for name in IMPORTS[module] if is_in(name, folder) and name.partition("_")[0] != family
        }
        assert others <= {f"{folder}.__init__", f"{folder}.base"}, module


@pytest.mark.parametrize("folder", ["launchers", "trackers"])
def test_only_the_command_line_chooses_an_adapter(folder):
    adapters = [name for name in in_folder(folder) if name not in (f"{folder}.__init__", f"{folder}.base")]
    for module, imported in IMPORTS.items():
        if imported & set(adapters):
            assert is_in(module, "cli") or is_in(module, folder), module


#: Words in what is given to `replace`, and fields set by it, that show it to be a value of the ledger.
VALUES = {"ledger", "entry", "delivery", "running", "failure"}
FIELDS = re.compile(
    "entries|table_due|session_open|problem|busy|writer|moved|verdict|pinned|attempts|evictions|running|failure"
    "|delivery|via|sent_at|handle|ending|evicted"
)


def raw_changes(source: str) -> list[str]:
    """Calls that change a ledger past its transitions: `replace` of what may be one, or whole entries."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Attribute) and node.func.attr in ("with_entry", "with_entries"):
            found.append(ast.unparse(node))
        elif ast.unparse(node.func) in ("replace", "dataclasses.replace") and node.args:
            words = set(re.findall(r"[a-z]+", ast.unparse(node.args[0]).lower()))
            if words & VALUES or any(FIELDS.fullmatch(keyword.arg or "") for keyword in node.keywords):
                found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("module", [module for module in MODULES if not is_in(module, "ledger")])
def test_nobody_changes_a_ledger_but_through_its_transitions(module):
    assert raw_changes(MODULES[module].read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "store.update(lambda ledger: replace(ledger, problem=None))",
        "replace(entry.delivery, via=where)",
        "dataclasses.replace(known, attempts=0)",
        "ledger.with_entry(step, running=None)",
    ],
)
def test_a_change_past_the_transitions_is_noticed(source):
    assert raw_changes(source) == [source if "store" not in source else "replace(ledger, problem=None)"]


def test_nobody_but_the_entry_point_imports_the_command_line():
    assert importers("cli") <= {"__main__"}


def test_the_evaluator_imports_nothing_but_itself_and_what_says_where_it_lies():
    for module in in_folder("genrec"):
        assert {name for name in IMPORTS[module] if not is_in(name, "genrec")} <= {"installation"}, module


def test_nothing_imports_the_evaluator():
    assert importers("genrec") == set()


def test_imports_form_no_circle():
    seen: dict[str, str] = {}

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module not in seen:
            for imported in IMPORTS[module] - {"__init__"}:
                visit(imported, (*path, module))
            seen[module] = "done"

    for module in MODULES:
        visit(module, ())


def prints(path: Path) -> Iterator[str]:
    """Calls in a file that write to a person's terminal."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in ("print", "sys.stdout.write") or called.startswith(("click.echo", "click.secho")):
                yield f"{path.name}:{node.lineno}: {called}"


@pytest.mark.parametrize("module", [module for module in MODULES if module != "cli.terminal"])
def test_everything_is_printed_in_one_place_where_names_are_escaped_and_keys_masked(module):
    assert list(prints(MODULES[module])) == []


def test_that_place_does_print():
    assert list(prints(MODULES["cli.terminal"]))


@pytest.mark.parametrize("module", MODULES)
def test_a_module_over_400_lines_is_two_modules(module):
    assert len(MODULES[module].read_text(encoding="utf-8").splitlines()) < 400


@pytest.mark.parametrize("module", MODULES)
def test_a_module_opens_with_what_it_is_for(module):
    assert ast.get_docstring(ast.parse(MODULES[module].read_text(encoding="utf-8")))


def test_the_evaluator_knows_transformers_in_one_folder():
    """What a release renames is then changed there, and nowhere else."""
    for module, path in MODULES.items():
        if is_in(module, "genrec.hf"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert not {"transformers", "peft", "tokenizers"} & {name.partition(".")[0] for name in names}, (
                module
            )
