"""What prompts have in common is computed once, and changes no ranking."""

import json

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import genrec_oracle as oracle  # noqa: E402
from eval_sidecar.genrec import beginnings, search  # noqa: E402
from eval_sidecar.genrec.beginnings import group_by_beginning  # noqa: E402
from eval_sidecar.genrec.checks import plan_search  # noqa: E402
from eval_sidecar.genrec.cli import main  # noqa: E402
from eval_sidecar.genrec.hf.forward import LanguageModel  # noqa: E402
from eval_sidecar.genrec.prompts import Prompts  # noqa: E402
from eval_sidecar.genrec.trie import build_trie  # noqa: E402

pytestmark = pytest.mark.genrec

EOS = 1
ITEMS = [
    [2 + first, 12 + second, 22 + third] for first in range(4) for second in range(4) for third in range(3)
]


def template(start, length):
    return [30 + (start + place * 7) % 30 for place in range(length)]


def make_prompts(*ids):
    longest = max(map(len, ids))
    return Prompts(tuple(map(tuple, ids)), tuple(len(prompt) < longest for prompt in ids), EOS)


class Counted(LanguageModel):
    """Counts the tokens that it computes."""

    computed = 0

    def forward(self, ids, **given):
        self.computed += ids.numel()
        return super().forward(ids, **given)


def rank(module, prompts, sharing=True):
    model, trie = Counted(module), build_trie(ITEMS, EOS)
    plan = plan_search(model, prompts, trie.depth)
    model.computed = 0
    found = search.rank(model, plan, prompts, trie, search.SearchSettings(num_beams=10))
    return found, model.computed, plan


def test_prompts_of_one_template_are_one_group():
    prompts = [template(0, 200) + [row] * (row + 1) for row in range(10)]
    assert group_by_beginning(prompts) == [(list(range(10)), 200)]


def test_templates_of_two_categories_are_two_groups():
    prompts = [template(0, 20) + template(5 + row % 2, 180) + [row] * 3 for row in range(20)]
    groups = group_by_beginning(prompts)
    assert sorted(groups) == [(list(range(0, 20, 2)), 200), (list(range(1, 20, 2)), 200)]


def test_a_few_prompts_of_another_template_stay_together():
    prompts = [[*template(0, 200), row] for row in range(10)] + [[3, 4], [5, 6, 7]]
    assert sorted(group_by_beginning(prompts)) == [(list(range(10)), 200), ([10, 11], 0)]


def test_short_beginnings_are_not_worth_a_group():
    assert group_by_beginning([[1, 2, row] for row in range(10)]) == [(list(range(10)), 0)]


def test_of_a_prompt_that_is_a_beginning_itself_the_last_token_is_left():
    prompts = [template(0, 200), template(0, 200), *([*template(0, 200), row] for row in range(10))]
    assert group_by_beginning(prompts) == [(list(range(12)), 199)]


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama", "mistral", "gemma2"])
def test_shared_beginnings_change_no_ranking_and_are_computed_once(kind, monkeypatch):
    module = oracle.make_model(64, kind)
    prompts = make_prompts(
        *(template(row % 2, 120) + template(row, row % 5) + [4] for row in range(24)),
        template(0, 120),
        [7, 8],
    )
    found, computed, plan = rank(module, prompts)
    assert plan.sharing
    monkeypatch.setattr(beginnings, "LEAST_SAVED", 1 << 30)
    expected, whole, _ = rank(module, prompts)
    assert found == expected
    assert whole - computed >= 23 * 119  # of 25 prompts, each of the two templates once


def test_a_model_that_cannot_continue_a_beginning_computes_each_prompt_whole(monkeypatch):
    module = oracle.make_model(64)
    forward = type(module).forward

    def forgetful(self, ids, past_key_values=None, attention_mask=None, **given):
        many = ids.shape[1] > 3 and attention_mask is not None  # more than the beams of a check
        mask = attention_mask.roll(1, -1) if many else attention_mask
        return forward(self, ids, past_key_values=past_key_values, attention_mask=mask, **given)

    monkeypatch.setattr(type(module), "forward", forgetful)
    model = LanguageModel(module)
    plan = plan_search(model, make_prompts(template(0, 40), [7, 8]), 3)
    assert plan.is_tree and not plan.sharing


def test_equal_prompts_are_searched_once(tiny, tmp_path, replace, capsys):
    lists, test_data = {}, tmp_path / "test.json"
    for title, rows in (("once", tiny.rows), ("twice", [*tiny.rows, *reversed(tiny.rows)])):
        test_data.write_text(json.dumps(rows))
        arguments = replace(tiny.arguments, test_data=test_data, output_root=tmp_path / title, num_beams=10)
        assert main(arguments) == 0
        results = tmp_path / title / "model/checkpoint-5/final_result.json"
        lists[title] = [row["predict"] for row in json.loads(results.read_text())]
    assert lists["twice"] == [*lists["once"], *reversed(lists["once"])]
    count = len(tiny.rows)
    assert f"{2 * count} rows have {count} different prompts" in capsys.readouterr().err
