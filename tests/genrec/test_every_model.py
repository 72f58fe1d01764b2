"""Every kind of language model is ranked as ``generate()`` ranks it, on the way that is right for it."""

import json

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import genrec_oracle as oracle
from eval_sidecar.genrec.cli import log_to_stderr, main
from eval_sidecar.genrec.data import TestSet, load_index, load_rows
from eval_sidecar.genrec.devices import Device
from eval_sidecar.genrec.evaluation import Evaluator
from eval_sidecar.genrec.parallel import ParallelRanker
from eval_sidecar.genrec.search import SearchSettings

pytestmark = pytest.mark.genrec

SLOW = "searched the slow way"

#: Kinds that no version's tree can have.
NEVER_A_TREE = {
    "mistral, short window", "gemma2, short window", "gemma3_text", "bloom", "falcon, alibi", "mpt", "mamba",
    "mamba2", "recurrent_gemma", "jamba", "bamba", "falcon_h1", "qwen3_next", "t5", "t5, untied", "bart",
}  # fmt: skip
#: Kinds that every version's tree must have: what most people train.
ALWAYS_A_TREE = {"qwen2", "qwen3", "qwen3_moe", "llama", "mistral", "gemma2", "phi3"}
#: Kinds whose prompts no version computes anew at each level.
ALWAYS_CACHED = {"mistral, short window", "falcon, alibi", "t5", "bart"}


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
    if kind in ALWAYS_CACHED:
        assert "without a cache" not in printed


@pytest.mark.parametrize("length_penalty", [0.0, 1.5])
@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_an_encoder_decoder_model_without_a_template_reads_plain_texts(
    kind, length_penalty, tmp_path, capsys
):
    arguments, model, tokenizer, index, rows = make_setup(tmp_path, kind, template=None)
    rows[1]["system"] = ""
    (tmp_path / "test.json").write_text(json.dumps(rows))
    assert main([*arguments, "--length-penalty", str(length_penalty)]) == 0
    texts = [f"{row['system']}\n\n{row['instruction']}\n\n{row['input']}".strip() for row in rows]
    prompts = tokenizer(texts)["input_ids"]
    expected = oracle.generate_each(model, tokenizer, prompts, index, 7, length_penalty)
    for predicted, ranked in zip(predict(tmp_path), expected, strict=True):
        oracle.assert_same_ranking(predicted, ranked)
    assert capsys.readouterr().err.count("no chat template: prompts are") == 1


def test_a_decoder_that_must_begin_with_a_token_begins_with_it(tmp_path):
    arguments, model, tokenizer, index, rows = make_setup(tmp_path, "bart")
    model.generation_config.update(forced_bos_token_id=5)
    model.save_pretrained(tmp_path / "model" / "checkpoint-5")
    model.generation_config.update(forced_bos_token_id=None)
    assert main(arguments) == 0
    items = oracle.joined(index)
    encoded = tokenizer(items, add_special_tokens=False)["input_ids"]
    for row, predicted in zip(rows, predict(tmp_path), strict=True):
        prompt = oracle.encode(tokenizer, row)
        scores = [
            oracle.score_decoded(model, prompt, [1, 5], ids, tokenizer.eos_token_id)
            for ids in (encoded[items.index(item)] for item in predicted)
        ]
        assert all(first > second - oracle.NEAR_TIE for first, second in zip(scores, scores[1:]))


@pytest.mark.parametrize("kind", ["bloom", "mamba", "t5"])
def test_the_batch_size_changes_no_list(kind, tmp_path):
    arguments, *_ = make_setup(tmp_path, kind, count=6)
    results = tmp_path / "results"
    assert main([*arguments, "--batch-size", "1"]) == 0
    alone = predict(tmp_path)
    results.rename(tmp_path / "alone")
    assert main([*arguments, "--batch-size", "8"]) == 0
    assert predict(tmp_path) == alone


def test_processes_that_share_the_rows_say_once_that_the_search_is_slow(tmp_path, capsys):
    arguments, *_ = make_setup(tmp_path, "bloom")
    assert main(arguments) == 0
    alone = predict(tmp_path)
    (tmp_path / "results").rename(tmp_path / "alone")
    capsys.readouterr()
    index_file, rows_file = tmp_path / "id2sid.json", tmp_path / "test.json"
    test_set = TestSet(load_rows(rows_file), load_index(index_file))
    ranker = ParallelRanker([Device("cpu", ""), Device("cpu", "")], SearchSettings(num_beams=7))
    log_to_stderr()
    try:
        Evaluator(test_set, ranker, tmp_path / "results", 7, 64).evaluate(tmp_path / "model" / "checkpoint-5")
    finally:
        ranker.close()
    assert predict(tmp_path) == alone
    assert capsys.readouterr().err.count(SLOW) == 1


def test_an_adapter_of_an_encoder_decoder_model_ranks_as_its_base_model_with_it(tmp_path):
    peft = pytest.importorskip("peft")
    arguments, base, tokenizer, index, rows = make_setup(tmp_path, "t5", template=None)
    checkpoint = tmp_path / "model" / "checkpoint-5"
    base.save_pretrained(tmp_path / "base model")
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        (checkpoint / name).unlink()
    base.name_or_path = str(tmp_path / "base model")
    config = peft.LoraConfig(r=4, target_modules=["q", "v"], task_type="SEQ_2_SEQ_LM")
    model = peft.get_peft_model(base, config).eval()
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(std=0.3)
    model.save_pretrained(checkpoint)
    assert main(arguments) == 0
    prompts = tokenizer([f"{row['system']}\n\n{row['instruction']}\n\n{row['input']}" for row in rows])
    expected = oracle.generate_each(model, tokenizer, prompts["input_ids"], index, 7)
    for predicted, ranked in zip(predict(tmp_path), expected, strict=True):
        oracle.assert_same_ranking(predicted, ranked)


CODE = """
from transformers import LlamaConfig, LlamaForCausalLM
class OwnConfig(LlamaConfig):
    model_type = "of_its_own"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def remote(tmp_path, monkeypatch):
    """Arguments of an evaluation of a checkpoint that brings its own code, and the model it is."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    arguments, *known = make_setup(tmp_path, "llama")
    checkpoint = tmp_path / "model" / "checkpoint-5"
    (checkpoint / "own_code.py").write_text(CODE)
    config = json.loads((checkpoint / "config.json").read_text())
    config |= {
        "model_type": "of_its_own", "architectures": ["OwnModel"],
        "auto_map": {"AutoConfig": "own_code.OwnConfig", "AutoModelForCausalLM": "own_code.OwnModel"},
    }  # fmt: skip
    (checkpoint / "config.json").write_text(json.dumps(config))
    return arguments, *known


def test_code_of_a_checkpoint_is_not_run_without_permission(remote, capsys):
    assert main(remote[0]) == 2
    (error,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error"))
    assert "model type 'of_its_own' would run code from the checkpoint" in error
    assert "TRUST_REMOTE_CODE=True" in error and "--trust-remote-code" in error


def test_code_of_a_checkpoint_that_is_trusted_is_run_and_checked_like_all_others(remote, tmp_path, capsys):
    arguments, model, tokenizer, index, rows = remote
    assert main([*arguments, "--trust-remote-code", "True"]) == 0, capsys.readouterr().err
    expected = oracle.generate_each(
        model, tokenizer, [oracle.encode(tokenizer, row) for row in rows], index, 7
    )
    for predicted, ranked in zip(predict(tmp_path), expected, strict=True):
        oracle.assert_same_ranking(predicted, ranked)
    assert "beams as a tree" in capsys.readouterr().err
