"""What a person can put right is one line on stderr and exit code 2, never a traceback."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
import transformers
from safetensors.torch import load_file, save_file

import genrec_oracle as oracle
from eval_sidecar.genrec.cli import main

pytestmark = pytest.mark.genrec


@pytest.fixture
def fails(capsys):
    """Return a function that runs the evaluator and checks that it fails with one line of these words."""

    def run(arguments, *words):
        capsys.readouterr()
        assert main(arguments) == 2
        errors = [line for line in capsys.readouterr().err.splitlines() if "model/" not in line[:6]]
        assert len(errors) == 1, errors
        assert errors[0].startswith("error: ")
        for word in words:
            assert word in errors[0], errors[0]

    return run


@pytest.fixture
def damaged(tiny, tmp_path):
    """A copy of the checkpoint, to be damaged."""
    return shutil.copytree(tiny.checkpoint, tmp_path / "model" / "checkpoint-5")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ["cannot be read"]),
        ("{}", ["is empty"]),
        ("[1]", ["expected an object", "found a list"]),
        ('{"7": ["<a_1>"], "item 8": "<a_1>"}', ['entry "item 8"', '"<a_1>"']),
        ('{"7": []}', ['entry "7"']),
        ('{"7": ["<a_1>", 3]}', ['entry "7"']),
        ('{"7": ["<a_1>"], "8": ["<a_2>"]}', ["--num-beams 50", "2 distinct items"]),
    ],
)
def test_a_bad_index_names_its_entry(tiny, tmp_path, fails, replace, content, words):
    path = tmp_path / "id2sid.json"
    path.write_text(content)
    fails(replace(tiny.arguments, index=path), "id2sid.json", *words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[", ["cannot be read"]),
        ("[]", ["is empty"]),
        ("{}", ["expected a list of rows"]),
        ("[3]", ["row 0", "found a number"]),
        ('[{"system": "", "instruction": "", "input": ""}]', ["row 0", "'output'", "found nothing"]),
        ('[{"system": "", "instruction": "", "input": null, "output": ""}]', ["row 0", "'input'", "null"]),
    ],
)
def test_a_bad_test_set_names_its_row(tiny, tmp_path, fails, replace, content, words):
    path = tmp_path / "test.json"
    path.write_text(content)
    fails(replace(tiny.arguments, test_data=path), "test.json", *words)


def test_missing_files_are_named(tiny, tmp_path, fails, replace):
    fails(replace(tiny.arguments, index=tmp_path / "none.json"), "index", "none.json does not exist")
    fails(replace(tiny.arguments, checkpoint=tmp_path / "checkpoint-9"), "checkpoint-9", "no such")


def test_sampling_is_refused(tiny, fails, replace):
    fails(replace(tiny.arguments, do_sample="True"), "sampling is not supported")


def test_items_longer_than_the_tokens_allowed_are_refused(tiny, fails, replace):
    fails(replace(tiny.arguments, max_new_tokens=4), "--max-new-tokens 4", "5 tokens")


def test_more_beams_than_items_are_refused(tiny, fails, replace):
    fails(replace(tiny.arguments, num_beams=5000), "--num-beams 5000", "distinct items")


def test_missing_libraries_name_the_extra(tiny, fails, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else find(name))
    fails(tiny.arguments, "torch not installed", "-m pip install ", "[genrec]")


def test_a_folder_that_is_no_checkpoint_is_named(tiny, damaged, fails, replace):
    (damaged / "config.json").unlink()
    fails(replace(tiny.arguments, checkpoint=damaged), "checkpoint-5", "neither config.json nor adapter")


def test_a_checkpoint_without_a_tokenizer_is_refused(tiny, damaged, fails, replace):
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (damaged / name).unlink(missing_ok=True)
    fails(replace(tiny.arguments, checkpoint=damaged), "checkpoint-5", "contains no tokenizer")


def test_a_tokenizer_without_a_chat_template_is_refused(tiny, tmp_path, fails, replace):
    tokenizer = oracle.make_tokenizer(template=None)
    arguments = oracle.write_setup(tmp_path, tiny.index, tiny.rows, tokenizer, tiny.model)
    fails(arguments, "checkpoint-5", "no chat template")


def test_a_truncated_weight_file_is_reported(tiny, damaged, fails, replace):
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-500])
    fails(replace(tiny.arguments, checkpoint=damaged), "checkpoint-5", "cannot be loaded")


def test_missing_weights_are_not_replaced_by_random_ones(tiny, damaged, fails, replace):
    weights = load_file(damaged / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, damaged / "model.safetensors", metadata={"format": "pt"})
    fails(replace(tiny.arguments, checkpoint=damaged), "1 weights are missing", "layers.1.mlp.up_proj.weight")


def test_a_tokenizer_that_is_larger_than_the_model_is_refused(tiny, tmp_path, fails):
    arguments = oracle.write_setup(
        tmp_path, tiny.index, tiny.rows, tiny.tokenizer, oracle.make_model(len(tiny.tokenizer) - 2)
    )
    fails(arguments, "token id", "do not belong together")


def change(path, **values):
    """Change a JSON file's settings; None takes one away."""
    settings = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({name: value for name, value in settings.items() if value is not None}))


def test_a_checkpoint_whose_settings_name_a_tokenizer_that_is_not_there_is_refused(
    tiny, damaged, fails, replace
):
    (damaged / "tokenizer.json").unlink()
    (damaged / "special_tokens_map.json").write_text('{"eos_token": "<end>"}')
    fails(
        replace(tiny.arguments, checkpoint=damaged), "checkpoint-5", "contains no tokenizer (tokenizer.json)"
    )


def test_a_tokenizer_that_is_code_of_the_checkpoint_is_not_run_without_permission(
    tiny, damaged, fails, replace
):
    (damaged / "tokenizer.json").unlink()
    (damaged / "own.py").write_text("raise SystemExit('it was run')")
    settings = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    (damaged / "tokenizer_config.json").write_text(json.dumps(settings))
    fails(
        replace(tiny.arguments, checkpoint=damaged), "would run code from the checkpoint", "TRUST_REMOTE_CODE"
    )


def test_a_model_type_of_a_newer_transformers_names_both_versions(tiny, damaged, fails, replace):
    change(damaged / "config.json", model_type="qwen9", transformers_version="9.1.0")
    fails(
        replace(tiny.arguments, checkpoint=damaged), "model type 'qwen9'", "saved by 9.1.0",
        f"installed transformers {transformers.__version__}", "pip install -U transformers",
    )  # fmt: skip


@pytest.mark.parametrize("head", ["Qwen2ForSequenceClassification", "Qwen2ForTokenClassification"])
def test_a_model_with_another_head_is_refused(tiny, damaged, fails, replace, head):
    change(damaged / "config.json", architectures=[head])
    fails(replace(tiny.arguments, checkpoint=damaged), head, "language-model head")


def test_an_encoder_is_refused(tiny, tmp_path, fails):
    model = oracle.AutoModelForCausalLM.from_config(
        oracle.AutoConfig.for_model(
            "bert", vocab_size=len(tiny.tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=1024, is_decoder=False,
        )
    )  # fmt: skip
    fails(
        oracle.write_setup(tmp_path, tiny.index, tiny.rows, tiny.tokenizer, model),
        "BertLMHeadModel cannot be evaluated", "no causal language-model head",
    )  # fmt: skip


def test_an_adapter_whose_base_is_gone_names_it(tiny, damaged, fails, replace, tmp_path):
    pytest.importorskip("peft")
    (damaged / "config.json").unlink()
    settings = {"peft_type": "LORA", "base_model_name_or_path": str(tmp_path / "gone")}
    (damaged / "adapter_config.json").write_text(json.dumps(settings))
    fails(
        replace(tiny.arguments, checkpoint=damaged), "base model", str(tmp_path / "gone"), "cannot be found"
    )


def test_one_bad_checkpoint_does_not_keep_the_others_from_being_evaluated(tiny, tmp_path, capsys, replace):
    arguments = replace(tiny.arguments, checkpoint=tmp_path / "checkpoint-1", output_root=tmp_path / "out")
    assert main([*arguments, "--checkpoint", str(tiny.checkpoint), "--num-beams", "5"]) == 2
    assert "checkpoint-1: no such" in capsys.readouterr().err
    assert (tmp_path / "out" / "model" / "checkpoint-5" / "metrics.json").is_file()


def test_nor_does_one_that_may_not_be_read(tiny, damaged, tmp_path, capsys, replace, monkeypatch):
    is_file = Path.is_file

    def refuse(path):
        if path.parent == damaged:
            raise PermissionError(13, "Permission denied", str(path))
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", refuse)
    arguments = replace(tiny.arguments, checkpoint=damaged, output_root=tmp_path / "out", num_beams=5)
    assert main([*arguments, "--checkpoint", str(tiny.checkpoint)]) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error"))
    assert line.startswith(f"error: {damaged} cannot be evaluated: [Errno 13] Permission denied")
    assert (tmp_path / "out" / "model" / "checkpoint-5" / "metrics.json").is_file()


def test_a_row_that_does_not_fit_into_memory_is_named(tiny, tmp_path, fails, replace, monkeypatch):
    def search(*ignored):
        raise torch.cuda.OutOfMemoryError("out of memory")

    monkeypatch.setattr("eval_sidecar.genrec.search._search", search)
    fails(replace(tiny.arguments, output_root=tmp_path), "does not fit into the device's memory")


def test_a_torch_that_transformers_does_not_take_is_named_with_both_versions(tiny, fails, monkeypatch):
    monkeypatch.setattr(transformers.utils, "is_torch_available", lambda: False)
    fails(list(tiny.arguments), transformers.__version__, torch.__version__, "install a newer torch")
