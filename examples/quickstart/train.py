"""Train a tiny Qwen2 on the quickstart's data: an ordinary ``transformers.Trainer`` run, on one CPU core.

It knows nothing about the sidecar. It writes
``<folder>/saves/Quickstart-sft-qwen-tiny-cb64/checkpoint-<step>`` and, with ``save_total_limit=2``,
deletes all but the last two as it goes. Run again, it continues where it was stopped, and does nothing
once it has finished.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Optional

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, TrainerControl, TrainerState, TrainingArguments

MODEL_NAME = "Quickstart-sft-qwen-tiny-cb64"
MAX_STEPS = 480
SAVE_STEPS = 60
SEED = 42

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def last_complete_checkpoint(model_dir: Path) -> Optional[Path]:
    """Return the newest checkpoint that was written to its end: trainer_state.json is written last."""
    complete = [state.parent for state in model_dir.glob("checkpoint-*/trainer_state.json")]
    return max(complete, key=lambda path: int(path.name.split("-")[1]), default=None)


def make_tokenizer(texts: list[str], sid_tokens: list[str]) -> PreTrainedTokenizerBase:
    """Return a byte-level BPE tokenizer, as Qwen2's is, in which each semantic-ID token is one token."""
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        min_frequency=1,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in sid_tokens])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
    )


def save_base_model(base: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Save a Qwen2 with random weights and its tokenizer, where a real training has a downloaded model."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=96,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)


def encode(row: dict[str, str], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[int]]:
    """Return one training example; the loss sees the answer and its end, not the prompt (label -100)."""
    messages = [
        {"role": "system", "content": row["system"]},
        {"role": "user", "content": row["instruction"] + "\n\n" + row["input"]},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
    answer = tokenizer(row["output"] + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
    return {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer}


def train(folder: Path, model_dir: Path) -> None:
    """Train, or continue from the last complete checkpoint in ``model_dir``."""
    import torch
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        DataCollatorForSeq2Seq,
        Trainer,
        TrainerCallback,
        TrainingArguments,
        set_seed,
    )

    class Progress(TrainerCallback):
        """Prints one line a checkpoint."""

        def on_save(
            self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
        ) -> None:
            losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
            print(f"training: step {state.global_step}/{state.max_steps}, loss {losses[-1]:.3f}", flush=True)

    torch.set_num_threads(1)  # the second core of a small machine is for the evaluation
    set_seed(SEED)
    data, base = folder / "data" / "Quickstart", folder / "base"
    rows = json.loads((data / "sft" / "train.json").read_text(encoding="utf-8"))
    index = json.loads((data / "id2sid.json").read_text(encoding="utf-8"))
    prose = ["system\nuser\nassistant\n", rows[0]["system"], rows[0]["instruction"] + "\n\nHistory: , "]
    save_base_model(base, make_tokenizer(prose, sorted({token for sid in index.values() for token in sid})))
    # Loaded again as an evaluation loads it: AutoTokenizer gives a Qwen2 model Qwen2's own text splitting.
    tokenizer = AutoTokenizer.from_pretrained(base)

    trainer = Trainer(
        model=AutoModelForCausalLM.from_pretrained(base),
        args=TrainingArguments(
            output_dir=str(model_dir),
            max_steps=MAX_STEPS,
            save_steps=SAVE_STEPS,
            save_total_limit=2,
            per_device_train_batch_size=32,
            learning_rate=1.5e-3,
            lr_scheduler_type="cosine",
            warmup_steps=40,
            logging_steps=SAVE_STEPS,
            seed=SEED,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=[encode(row, tokenizer) for row in rows],
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        processing_class=tokenizer,
        callbacks=[Progress()],
    )
    last = last_complete_checkpoint(model_dir)
    if last is not None:
        print(f"training: continuing from {last.name}", flush=True)
    trainer.train(resume_from_checkpoint=last)


def main() -> None:
    """Train unless the last checkpoint is already there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, help="the folder that make_data.py filled")
    folder = parser.parse_args().folder.absolute()
    model_dir = folder / "saves" / MODEL_NAME

    last = last_complete_checkpoint(model_dir)
    if last is not None and last.name == f"checkpoint-{MAX_STEPS}":
        print(f"training: already finished, {last} is there", flush=True)
        return
    train(folder, model_dir)
    print(f"training: finished, {MAX_STEPS} steps", flush=True)


if __name__ == "__main__":
    main()
