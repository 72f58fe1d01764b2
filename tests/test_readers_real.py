"""The real lm-eval, run on a tiny random model and read by our reader; skipped if it is not installed."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eval_sidecar.readers.registry import Readers

#: The Python that has lm_eval, if it is not this one: scripts/setup-evals makes it.
PYTHON = os.environ.get("LM_EVAL_PYTHON", sys.executable)

pytestmark = [
    pytest.mark.evals,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        sys.executable == PYTHON and importlib.util.find_spec("lm_eval") is None,
        reason="lm_eval is not installed (scripts/setup-evals; LM_EVAL_PYTHON=.venv-evals/bin/python)",
    ),
]

SUMS = [(a, b) for a in range(1, 5) for b in range(1, 4)]
#: JSON is YAML: every task reads the same twelve sums.
COMMON = {
    "dataset_path": "json",
    "test_split": "test",
    "doc_to_text": "{{question}}",
    "metadata": {"version": 2.0},
}
CHOICE = {"output_type": "multiple_choice", "doc_to_choice": "choices", "doc_to_target": "gold"}
DIGITS = [{"function": "regex", "regex_pattern": "(\\d+)"}, {"function": "take_first"}]
TASKS = [
    {"task": "sums_a", **CHOICE, "metric_list": [{"metric": "acc"}]},
    {"task": "sums_b", **CHOICE, "metric_list": [{"metric": "acc"}]},
    {
        "task": "sums_gen",
        "output_type": "generate_until",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4, "do_sample": False},
        "filter_list": [{"name": "strict", "filter": DIGITS}, {"name": "loose", "filter": DIGITS}],
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    },
    {
        "task": "sums_pages",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{question}}",
        "metric_list": [{"metric": "byte_perplexity"}],
    },
]
GROUP = {
    "group": "sums",
    "task": ["sums_a", "sums_b"],
    "aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}],
    "metadata": {"version": 1.0},
}


def make_tasks(folder: Path) -> None:
    folder.mkdir()
    rows = [
        {
            "question": f"{a} plus {b} is",
            "answer": str(a + b),
            "choices": [str(a + b), str(a * b + 1)],
            "gold": 0,
        }
        for a, b in SUMS
    ]
    data = folder / "sums.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {"dataset_kwargs": {"data_files": {"test": str(data)}}}
    for task in TASKS:
        (folder / f"{task['task']}.yaml").write_text(json.dumps({**COMMON, **files, **task}))
    (folder / "sums.yaml").write_text(json.dumps(GROUP))


def make_model(folder: Path) -> None:
    pytest.importorskip("transformers")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = {char: i for i, char in enumerate(["</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(letters, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>")
    fast.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(letters),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        bos_token_id=0,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What lm-eval writes for the group and the two other tasks."""
    folder = tmp_path_factory.mktemp("lm-eval")
    make_model(folder / "model")
    make_tasks(folder / "tasks")
    command = [PYTHON, "-m", "lm_eval", "--model", "hf", "--device", "cpu", "--log_samples"]
    command += [
        "--model_args",
        f"pretrained={folder / 'model'},dtype=float32",
        "--include_path",
        folder / "tasks",
    ]
    command += ["--tasks", "sums,sums_gen,sums_pages", "--output_path", folder / "output"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    done = subprocess.run(command, env={**os.environ, **offline}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "output"


def test_the_numbers_of_the_real_lm_eval_are_read_with_all_that_it_says_of_them(output):
    found = Readers().read(output, time.time() - 600)
    assert found.reader == "lm-eval"
    by_name = found.measurements.by_name
    assert sorted(by_name) == [
        *(
            "sums/acc",
            "sums_a/acc",
            "sums_b/acc",
            "sums_gen/exact_match/loose",
            "sums_gen/exact_match/strict",
        ),
        "sums_pages/byte_perplexity",
    ]
    assert {
        name: measured.direction for name, measured in by_name.items() if measured.direction != "max"
    } == {"sums_pages/byte_perplexity": "min"}
    assert [by_name[name].samples for name in ("sums_a/acc", "sums/acc")] == [12, 24]
    assert by_name["sums_a/acc"].stderr is not None
    assert by_name["sums_a/acc"].task_version == "2"
    assert len(found.measurements.sample_files) == 4
    assert found.measurements.left_out == ()
