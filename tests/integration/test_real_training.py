"""Real trainers beside the real command line: what they write is proved, kept and evaluated."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from toolbox import Repository, wait_until

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = [pytest.mark.training, pytest.mark.genrec]

_MODEL = """
import sys, time
import torch
torch.set_num_threads(1)
from transformers import Qwen2Config, Qwen2ForCausalLM, Trainer, TrainerCallback, TrainingArguments

folder, count, pause = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
sizes = dict(hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1)
model = Qwen2ForCausalLM(Qwen2Config(vocab_size=32, num_key_value_heads=1, **sizes))
"""

_TRAINER = """
class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 1000
    def __getitem__(self, number):
        tokens = torch.tensor([1, 2, 3, 4])
        return {"input_ids": tokens, "labels": tokens}

class Slow(TrainerCallback):
    def on_step_end(self, *arguments, **more):
        time.sleep(pause)

arguments = TrainingArguments(
    folder, max_steps=count, save_steps=1, save_total_limit=1, report_to=[], disable_tqdm=True, use_cpu=True
)
Trainer(model, arguments, train_dataset=Data(), callbacks=[Slow()]).train()
"""

_ADAPTER = """
from peft import LoraConfig, get_peft_model
model = get_peft_model(model, LoraConfig(target_modules=["q_proj"]), adapter_name="policy")
"""

_ACCELERATE = """
from accelerate import Accelerator
accelerator = Accelerator(cpu=True)
optimizer = torch.optim.AdamW(model.parameters())
model, optimizer = accelerator.prepare(model, optimizer)
accelerator.save_state(f"{folder}/checkpoint-1")
"""


def train(repository: Repository, program: str, count: int = 1, pause: float = 0.0) -> None:
    done = subprocess.run(
        [sys.executable, "-c", program, str(repository.model_dir), str(count), str(pause)],
        env=repository.environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr


def test_a_trainer_that_rotates_every_sixth_of_a_second_has_each_checkpoint_evaluated(
    repository: Repository,
) -> None:
    watching = repository.run("--poll-interval-seconds", "60")
    wait_until(lambda: "watching" in watching.output, "a greeting")
    train(repository, _MODEL + _TRAINER, count=40, pause=0.12)
    wait_until(lambda: len(repository.processed) >= 40, "all to be evaluated", 120)
    assert repository.processed == list(range(1, 41))
    wait_until(lambda: not repository.pins_folder.exists(), "the pins to be removed")
    assert [path.name for path in repository.model_dir.iterdir()] == ["checkpoint-40"]


def test_an_adapter_with_a_name_is_proved_and_evaluated_at_once(repository: Repository) -> None:
    pytest.importorskip("peft")
    train(repository, _MODEL + _ADAPTER + _TRAINER)
    assert (repository.model_dir / "checkpoint-1/policy/adapter_model.safetensors").exists()
    done = repository.once("--checkpoint-ready-seconds", "3600")
    assert done.returncode == 0, done.stderr
    assert repository.processed == [1]


def test_what_accelerate_saves_is_evaluated_after_the_quiet_period(repository: Repository) -> None:
    pytest.importorskip("accelerate")
    train(repository, _MODEL + _ACCELERATE)
    settling = repository.once("--checkpoint-ready-seconds", "3600")
    assert "checkpoint-1: settling" in settling.stdout
    done = repository.once("--checkpoint-ready-seconds", "0")
    assert done.returncode == 0, done.stderr
    assert repository.processed == [1]


def test_a_checkpoint_that_a_trainer_has_half_deleted_is_not_complete(repository: Repository) -> None:
    train(repository, _MODEL + _TRAINER)
    folder: Path = repository.model_dir / "checkpoint-1"
    for name in ("training_args.bin", "rng_state.pth", "scheduler.pt", "optimizer.pt"):
        (folder / name).unlink()
        done = repository.once("--checkpoint-ready-seconds", "3600")
        assert repository.calls == [], f"without {name}"
        assert "training_args.bin, which Trainer writes, is missing (being deleted?)" in done.stdout
