"""The straightforward way to rank items, as a process: ``generate()`` with a Python trie.

One call of ``generate()`` a batch, each prompt copied once a beam, a trie of dictionaries walked for each beam
and step. Beside it, in the same process, the evaluator's own decoding. Started by ``evaluator.py``.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluator import BATCH_SIZE, BEAMS, Setup

if TYPE_CHECKING:
    import torch
    from transformers import LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase


def load(setup: Setup) -> tuple[PreTrainedTokenizerBase, PreTrainedModel, list[dict[str, str]], list[str]]:
    """Return the tokenizer, the model, the rows and the distinct items."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(setup.checkpoints[0])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = "auto" if device == "cuda" else "float32"
    model = AutoModelForCausalLM.from_pretrained(setup.checkpoints[0], dtype=dtype).to(device).eval()
    rows = json.loads(Path(setup.test_data).read_text())
    items = {"".join(tokens) for tokens in json.loads(Path(setup.index).read_text()).values()}
    return tokenizer, model, rows, sorted(items)


def make_processor(tokenizer: PreTrainedTokenizerBase, items: Sequence[str], width: int) -> LogitsProcessor:
    """Return the arithmetic of the evaluation as a logits processor over a trie of dictionaries."""
    import torch
    from transformers import LogitsProcessor

    trie: dict[int, Any] = {}
    for item in items:
        node = trie
        for token in [*tokenizer(item, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]:
            node = node.setdefault(token, {})

    def allowed_tokens(generated: list[int]) -> list[int]:
        node = trie
        for token in generated:
            node = node.get(token, {})
        return list(node)

    class OnlyItems(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            scores = scores.scatter(1, input_ids, scores.gather(1, input_ids) * 1.1)
            scores = torch.log_softmax(scores, dim=-1)
            mask = torch.full_like(scores, -torch.inf)
            for row, generated in enumerate(input_ids[:, width:].tolist()):
                mask[row, allowed_tokens(generated)] = 0
            return scores + mask

    return OnlyItems()


def encode(tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict[str, str]]) -> list[list[int]]:
    """Return the token ids of each row's prompt."""
    prompts = []
    for row in rows:
        messages = [
            {"role": "system", "content": row["system"]},
            {"role": "user", "content": row["instruction"] + "\n\n" + row["input"]},
        ]
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        prompts.append(
            tokenizer(text, add_special_tokens=False, truncation=True, max_length=512)["input_ids"]
        )
    return prompts


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    processor: LogitsProcessor,
    width: int,
) -> list[list[tuple[str, float]]]:
    """Return each prompt's ranked items with their scores, a batch a call of ``generate()``."""
    import torch

    eos = tokenizer.eos_token_id
    ranked: list[list[tuple[str, float]]] = []
    for start in range(0, len(prompts), BATCH_SIZE):
        batch = prompts[start : start + BATCH_SIZE]
        with torch.no_grad():
            output = model.generate(
                input_ids=torch.tensor([[eos] * (width - len(ids)) + ids for ids in batch]).to(model.device),
                attention_mask=torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in batch]).to(
                    model.device
                ),
                num_beams=BEAMS,
                num_return_sequences=BEAMS,
                max_new_tokens=256,
                do_sample=False,
                length_penalty=0.0,
                repetition_penalty=1.0,
                eos_token_id=eos,
                pad_token_id=eos,
                logits_processor=[processor],
                return_dict_in_generate=True,
                output_scores=True,
            )
        texts = tokenizer.batch_decode(output.sequences[:, width:], skip_special_tokens=True)
        found = list(zip(texts, output.sequences_scores.tolist()))
        ranked += [found[place : place + BEAMS] for place in range(0, len(found), BEAMS)]
    return ranked


def run_baseline(setup: Setup) -> dict[str, Any]:
    """Rank everything the straightforward way; afterwards, in the same process, the evaluator's way."""
    tokenizer, model, rows, items = load(setup)
    prompts = encode(tokenizer, rows)
    width = max(map(len, prompts))
    processor = make_processor(tokenizer, items, width)
    began = time.monotonic()
    ranked = generate(model, tokenizer, prompts, processor, width)
    seconds = time.monotonic() - began
    path = Path("baseline.json").absolute()
    path.write_text(json.dumps(ranked))
    ended = time.monotonic()

    search = make_search(setup, tokenizer, model, rows)
    times = []
    for _ in range(3):
        began = time.monotonic()
        search()
        times.append(time.monotonic() - began)
    return {"generate": seconds, "ended": ended, "tree": statistics.median(times), "lists": str(path)}


def make_search(
    setup: Setup,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    rows: list[dict[str, str]],
    batch: Sequence[int] | None = None,
) -> Callable[[], object]:
    """Return the evaluator's decoding of all rows, or some, as a function to be timed."""
    from eval_sidecar.genrec.checks import plan_search
    from eval_sidecar.genrec.data import load_index
    from eval_sidecar.genrec.hf.forward import LanguageModel
    from eval_sidecar.genrec.prompts import encode_items, encode_prompts
    from eval_sidecar.genrec.search import SearchSettings, rank
    from eval_sidecar.genrec.trie import build_trie

    prompts = encode_prompts(tokenizer, rows)
    if batch is not None:
        prompts = prompts.select(batch)
    trie = build_trie(encode_items(tokenizer, load_index(Path(setup.index))), tokenizer.eos_token_id)
    searched = LanguageModel(model)
    plan = plan_search(searched, prompts, trie.depth)
    return lambda: rank(searched, plan, prompts, trie, SearchSettings(BEAMS, 0.0, BATCH_SIZE))


def measure_memory(setup: Setup) -> dict[str, int]:
    """Return the peak of each way in bytes, weights included, and of a prefill of the rows that it takes."""
    from eval_sidecar.genrec.batches import plan_batches

    tokenizer, model, rows, items = load(setup)
    prompts = encode(tokenizer, rows)
    width = max(map(len, prompts))
    processor = make_processor(tokenizer, items, width)
    depth = max(len(tokenizer(item, add_special_tokens=False)["input_ids"]) for item in items)
    lengths = [len(ids) for ids in prompts]
    batches = plan_batches(lengths, BEAMS, depth, BATCH_SIZE, model.config.get_text_config().vocab_size)
    widest = max(batches, key=lambda batch: len(batch) * lengths[batch[-1]])
    first = prompts[:BATCH_SIZE]
    prefill(model, first)  # what is allocated once is no part of any peak
    return {
        "prefill": find_peak(model, lambda: prefill(model, [prompts[row] for row in widest])),
        "tree": find_peak(model, make_search(setup, tokenizer, model, rows, widest)),
        "prefill_of_generate": find_peak(model, lambda: prefill(model, first)),
        "generate": find_peak(model, lambda: generate(model, tokenizer, first, processor, width)),
    }


def prefill(model: PreTrainedModel, prompts: Sequence[list[int]]) -> object:
    """Run prompts through the model once, padded to the longest, with a cache."""
    import torch

    width = max(map(len, prompts))
    ids = torch.tensor([ids + [0] * (width - len(ids)) for ids in prompts]).to(model.device)
    with torch.no_grad():
        return model(input_ids=ids, use_cache=True, logits_to_keep=1)


def find_peak(model: PreTrainedModel, work: Callable[[], object]) -> int:
    """Return the bytes that the weights and a piece of work take together, at most."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        work()
        return int(torch.cuda.max_memory_allocated())
    # malloc was told to give every larger block back at once, so the process's memory is that of the tensors.
    Path("/proc/self/clear_refs").write_text("5")
    before = read_status("VmRSS")
    work()
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    return weights + read_status("VmHWM") - before


def read_status(name: str) -> int:
    """Return a size in bytes that the system tells of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)


def main() -> None:
    """Do one part of the measurements and print what was found, as JSON."""
    work, fields = sys.argv[1], json.loads(sys.argv[2])
    setup = Setup(tuple(fields["checkpoints"]), fields["test_data"], fields["index"])
    print(json.dumps(run_baseline(setup) if work == "baseline" else measure_memory(setup)))


if __name__ == "__main__":
    main()
