"""What is kept from one checkpoint to the next: prompts, as long as making them anew would change nothing."""

import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import genrec_oracle as oracle
from eval_sidecar.genrec.data import TestSet, load_index
from eval_sidecar.genrec.evaluation import Evaluator

pytestmark = pytest.mark.genrec


class Recorder:
    """Stands for a ranker: remembers the prompts that it was given."""

    load_seconds = 0.0
    search = "not at all"

    def __init__(self):
        self.prompts = []

    def rank(self, checkpoint, prompts, items, advance):
        self.prompts.append(prompts)
        return [[0] for _ in prompts.ids]


@pytest.fixture
def prompts_of(tiny, tmp_path):
    """Return a function that evaluates checkpoints one after the other: the prompts of each."""

    def evaluate(*checkpoints):
        recorder = Recorder()
        test_set = TestSet(tiny.rows, load_index(tiny.folder / "id2sid.json"))
        evaluator = Evaluator(test_set, recorder, tmp_path / "results", num_beams=1, max_new_tokens=9)
        for checkpoint in checkpoints:
            evaluator.evaluate(checkpoint)
        return recorder.prompts

    return evaluate


@pytest.fixture
def copies(tiny, tmp_path):
    """Two checkpoints with the same tokenizer."""
    return [shutil.copytree(tiny.checkpoint, tmp_path / f"model/checkpoint-{step}") for step in (5, 10)]


def test_the_prompts_of_one_tokenizer_are_made_once(prompts_of, copies):
    for step, checkpoint in enumerate(copies):
        for name in (
            "trainer_state.json",
            "model.safetensors",
            "model.safetensors.index.json",
            "optimizer.npz",
        ):
            (checkpoint / name).write_text(str(step))
    first, second = prompts_of(*copies)
    assert first is second


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer_config.json", "additional_chat_templates/a.jinja"]
)
def test_another_file_of_a_tokenizer_makes_them_anew(name, prompts_of, copies):
    file = copies[1] / name
    file.parent.mkdir(exist_ok=True)
    file.write_text((file.read_text() if file.exists() else "") + "\n")
    first, second = prompts_of(*copies)
    assert first is not second


def test_prompts_that_hold_the_time_are_made_anew(prompts_of, tiny, tmp_path):
    tokens = sorted({token for tokens in tiny.index.values() for token in tokens})
    tokenizer = oracle.make_tokenizer(tokens, "{{ strftime_now('%d %H %M %S %f') }}" + oracle.TEMPLATE)
    checkpoint = tmp_path / "model/checkpoint-5"
    tokenizer.save_pretrained(checkpoint)
    (checkpoint / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    first, second = prompts_of(checkpoint, checkpoint)
    assert first != second


def test_a_side_file_that_cannot_be_read_harms_no_checkpoint(prompts_of, copies):
    unreadable = Path("/proc/self/mem")  # for root too: there is nothing at its first byte
    if not unreadable.exists():
        pytest.skip("no file here that nobody can read")
    (copies[1] / "notes.json").symlink_to(unreadable)
    first, second = prompts_of(*copies)
    assert first == second
