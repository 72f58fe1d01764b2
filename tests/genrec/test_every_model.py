"""Every kind of language model is ranked as ``generate()`` ranks it, on the way that is right for it."""

import json

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import genrec_oracle as oracle
from eval_sidecar.genrec.cli import main

pytestmark = pytest.mark.genrec

SLOW = "searched the slow way"

#: Kinds that no version's tree can have.
NEVER_A_TREE = {
    "mistral, short window", "gemma2, short window", "gemma3_text", "bloom", "falcon, alibi", "mpt", "mamba",
    "mamba2", "recurrent_gemma", "jamba", "bamba", "falcon_h1", "qwen3_next", "t5", "t5, untied", "bart",
}  # fmt: skip
#: Kinds that every version's tree must have: what most people train.
ALWAYS_A_TREE = {"qwen2", "qwen3", "qwen3_moe", "llama", "mistral", "gemma2", "phi3"}


def make_setup(folder, kind, *, template=oracle.TEMPLATE, count=4, **options):
    """Write a checkpoint of a kind with its data; return the arguments, the model, and what it is asked."""
    index = oracle.make_index(items=60, levels=(3, 4), width=5)
    rows = oracle.make_rows(index, count=count, words=5)
    tokens = sorted({token for levels in index.values() for token in levels})
    tokenizer = oracle.make_tokenizer(tokens, template)
    try:
        model = oracle.make_kind(kind, len(tokenizer) + 9, **options)
    except (ValueError, KeyError) as error:
        pytest.skip(f"{kind}: {error}"[:100])
    arguments = oracle.write_setup(folder, index, rows, tokenizer, model)
    return [*arguments, "--num-beams", "7"], model, tokenizer, index, rows


def predict(folder):
    [result] = (folder / "results" / "model").iterdir()
    return [row["predict"] for row in json.loads((result / "final_result.json").read_text())]


@pytest.mark.parametrize("kind", oracle.KINDS)
def test_ranks_as_generate(kind, tmp_path, capsys):
    arguments, model, tokenizer, index, rows = make_setup(tmp_path, kind)
    assert main(arguments) == 0
    printed = capsys.readouterr().err
    prompts = [oracle.encode(tokenizer, row) for row in rows]
    expected = oracle.generate_each(model, tokenizer, prompts, index, 7)
    for predicted, ranked in zip(predict(tmp_path), expected, strict=True):
        oracle.assert_same_ranking(predicted, ranked)
    assert printed.count(SLOW) == (", beams as a tree" not in printed)
    if kind in NEVER_A_TREE:
        assert SLOW in printed
    if kind in ALWAYS_A_TREE:
        assert SLOW not in printed
