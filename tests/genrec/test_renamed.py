"""With a transformers that renames its arguments, or ignores them, the ranked lists stay the same."""

import json

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from eval_sidecar.genrec.cli import main

pytestmark = pytest.mark.genrec

ARGUMENTS = ("input_ids", "attention_mask", "position_ids", "past_key_values", "use_cache", "logits_to_keep")


@pytest.fixture
def evaluate(tiny, tmp_path, replace, capsys):
    """Return a function that evaluates, and returns the ranked lists and what was printed."""

    def run(name):
        arguments = replace(tiny.arguments, output_root=tmp_path / name, num_beams=8)
        assert main(arguments) == 0, capsys.readouterr().err
        [path] = (tmp_path / name).rglob("final_result.json")
        return [row["predict"] for row in json.loads(path.read_text())], capsys.readouterr().err

    return run


@pytest.fixture
def rename(tiny, monkeypatch):
    """Return a function that gives the model's ``forward`` other names for its arguments, and no others."""
    real = type(tiny.model).forward

    def renamed(**names):
        new = [names.get(name, name) for name in ARGUMENTS]
        source = (
            f"def forward(self, {new[0]}, {', '.join(f'{name}=None' for name in new[1:])}):\n"
            f"    return call(self, {', '.join(new)})\n"
        )
        space = {"call": call}
        exec(source, space)
        monkeypatch.setattr(type(tiny.model), "forward", space["forward"])

    def call(self, ids, mask, positions, cache, use_cache, keep):
        given = {"attention_mask": mask, "position_ids": positions, "past_key_values": cache}
        given = {name: value for name, value in given.items() if value is not None}
        return real(self, ids, use_cache=use_cache, logits_to_keep=keep or 0, **given)

    return renamed


@pytest.mark.parametrize(
    "names",
    [
        {},
        {"past_key_values": "cache"},
        {"past_key_values": "kv_store"},
        {"past_key_values": "past_states", "attention_mask": "mask", "position_ids": "positions"},
        {"input_ids": "tokens", "logits_to_keep": "num_logits_to_keep"},
        {"use_cache": "keep_cache", "past_key_values": "cache_store", "logits_to_keep": "last"},
    ],
    ids=str,
)
def test_arguments_under_other_names_are_found(names, rename, evaluate):
    expected, _ = evaluate("expected")
    rename(**names)
    found, printed = evaluate("renamed")
    assert found == expected
    assert "searched the slow way" not in printed


def test_without_any_name_that_is_known_the_search_is_slow(rename, evaluate):
    expected, _ = evaluate("expected")
    rename(**{name: f"x{number}" for number, name in enumerate(ARGUMENTS)})
    found, printed = evaluate("renamed")
    assert found == expected
    assert printed.count("searched the slow way") == 1


@pytest.mark.parametrize("ignored", ["attention_mask", "position_ids", "logits_to_keep"])
def test_an_argument_that_is_ignored_costs_time_only(ignored, tiny, evaluate, monkeypatch):
    expected, _ = evaluate("expected")
    real = type(tiny.model).forward

    def deaf(self, *ids, **given):
        given.pop(ignored, None)
        return real(self, *ids, **given)

    monkeypatch.setattr(type(tiny.model), "forward", deaf)
    found, printed = evaluate("ignored")
    assert found == expected
    assert printed.count("searched the slow way") == (ignored != "logits_to_keep")


def test_a_cache_that_is_ignored_costs_time_only(tiny, evaluate, monkeypatch):
    expected, _ = evaluate("expected")
    real = type(tiny.model).forward

    def forgetful(self, *ids, cache=None, past_key_values=None, **given):
        return real(self, *ids, **given)

    monkeypatch.setattr(type(tiny.model), "forward", forgetful)
    found, printed = evaluate("forgetful")
    assert found == expected
    assert "searched the slow way, beams one by one, without a cache, about" in printed
