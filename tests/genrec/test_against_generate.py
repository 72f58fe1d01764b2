"""The evaluator's ranked lists are those of transformers' own ``generate()``."""

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import genrec_oracle as oracle  # noqa: E402
from eval_sidecar.genrec.cli import main  # noqa: E402

pytestmark = pytest.mark.genrec


def known_tokens(index):
    return sorted({token for tokens in index.values() for token in tokens})


def evaluate(folder: Path, arguments):
    assert main(arguments) == 0
    [result] = (folder / "results" / "model").iterdir()
    return json.loads((result / "final_result.json").read_text(encoding="utf-8"))


def check(folder, index, rows, *, known=True, kind="qwen2", num_beams=10, length_penalty=0.0, sid_levels=-1):
    tokenizer = oracle.make_tokenizer(known_tokens(index) if known else ())
    model = oracle.make_model(len(tokenizer) + 9, kind)
    arguments = oracle.write_setup(folder, index, rows, tokenizer, model)
    arguments += ["--num-beams", str(num_beams), "--length-penalty", str(length_penalty)]
    predicted = evaluate(folder, [*arguments, "--sid-levels", str(sid_levels)])
    levels = sid_levels if sid_levels > 0 else None
    expected = oracle.generate_ranked(model, arguments[1], index, rows, num_beams, length_penalty, levels)
    assert len(predicted) == len(rows)
    for row, source, ranked in zip(predicted, rows, expected, strict=True):
        oracle.assert_same_ranking(row.pop("predict"), ranked)
        assert row == source


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama", "mistral"])
def test_three_levels_rank_as_in_generate(tmp_path, kind):
    index = oracle.make_index()
    check(tmp_path, index, oracle.make_rows(index, count=5), kind=kind, num_beams=20)


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.5, -0.7])
def test_items_of_three_and_four_levels_rank_as_in_generate(tmp_path, length_penalty):
    index = oracle.make_index(levels=(3, 4), width=5)
    check(tmp_path, index, oracle.make_rows(index, count=5), num_beams=15, length_penalty=length_penalty)


def test_tokens_that_split_into_several_ids_rank_as_in_generate(tmp_path):
    index = oracle.make_index(items=40, levels=(3, 4), width=15)
    check(tmp_path, index, oracle.make_rows(index, count=4, words=4), known=False, num_beams=8)


def test_as_many_beams_as_items_rank_every_item(tmp_path):
    index = oracle.make_index(items=12, levels=(3, 4, 1))
    items = {"".join(tokens) for tokens in index.values()}
    check(tmp_path, index, oracle.make_rows(index, count=4), num_beams=len(items))


def test_fewer_levels_rank_as_in_generate_over_the_shortened_items(tmp_path):
    index = oracle.make_index()
    check(tmp_path, index, oracle.make_rows(index, count=4), sid_levels=2, num_beams=10)


def test_prompts_beyond_512_tokens_are_cut_on_the_right(tmp_path):
    index = oracle.make_index()
    rows = oracle.make_rows(index, count=4)
    for row in rows[:2]:
        row["input"] = ", ".join(["a long history"] * 50) + row["input"]
    check(tmp_path, index, rows)


def test_prompts_of_one_length_are_not_padded(tmp_path):
    index = oracle.make_index()
    rows = oracle.make_rows(index, count=3)
    check(tmp_path, index, [{**row, "input": f"History {number}"} for number, row in enumerate(rows)])


def test_an_adapter_ranks_as_its_base_model_with_it(tmp_path):
    peft = pytest.importorskip("peft")
    index = oracle.make_index()
    rows = oracle.make_rows(index, count=4)
    tokenizer = oracle.make_tokenizer(known_tokens(index))
    oracle.make_model(len(tokenizer)).save_pretrained(tmp_path / "base model")
    base = oracle.AutoModelForCausalLM.from_pretrained(tmp_path / "base model")
    # The training has added tokens, so the adapter brings an embedding of another height.
    base.resize_token_embeddings(len(tokenizer) + 5, mean_resizing=False)
    config = peft.LoraConfig(
        r=4, target_modules=["q_proj", "v_proj"], modules_to_save=["embed_tokens", "lm_head"]
    )
    model = peft.get_peft_model(base, config).eval()
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    arguments = oracle.write_setup(tmp_path, index, rows, tokenizer)
    model.save_pretrained(tmp_path / "model" / "checkpoint-5")
    predicted = evaluate(tmp_path, [*arguments, "--num-beams", "10"])
    expected = oracle.generate_ranked(model, arguments[1], index, rows, 10)
    for row, ranked in zip(predicted, expected, strict=True):
        oracle.assert_same_ranking(row["predict"], ranked)
