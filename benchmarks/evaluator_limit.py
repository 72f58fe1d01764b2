"""How near decoding is to its limit: the time that the model's own matrix products take on this machine.

The products are those of the model's linear layers, counted while a search runs. Each shape is then measured
alone. The rest of the time is attention, activations and norms, scores, and the search itself. Started by
``evaluator.py``.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

#: Times that a search, and each shape of product, is measured; the middle one counts.
RUNS = 3
#: Rows for the larger model: enough for one batch.
FEW_ROWS = 4


def share_of_products(model: Any, search: Callable[[], object]) -> tuple[float, float]:  # noqa: ANN401
    """Return the share of a search that the products of the model's linear layers take, and its seconds."""
    products = count_products(model, search)
    seconds = middle_time(search)
    return sum(times * time_product(*product) for product, times in products.items()) / seconds, seconds


def count_products(
    model: Any,  # noqa: ANN401
    search: Callable[[], object],
) -> Counter[tuple[torch.nn.Linear, int]]:
    """Return how often a search multiplies n tokens by a layer; one layer stands for all of its shape."""
    import torch

    products: Counter[tuple[torch.nn.Linear, int]] = Counter()
    first: dict[tuple[int, int], torch.nn.Linear] = {}

    def count(layer: torch.nn.Linear, inputs: tuple[torch.Tensor, ...], _: torch.Tensor) -> None:
        same = first.setdefault((layer.in_features, layer.out_features), layer)
        products[same, inputs[0].numel() // layer.in_features] += 1

    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in linear]
    search()
    for hook in hooks:
        hook.remove()
    return products


def time_product(layer: torch.nn.Linear, tokens: int) -> float:
    """Return the seconds of one product of this shape."""
    import torch

    x = torch.randn(tokens, layer.in_features, device=layer.weight.device, dtype=layer.weight.dtype)

    def multiply() -> None:
        with torch.inference_mode():
            torch.mm(x, layer.weight.t())

    multiply()
    return middle_time(multiply)


def middle_time(work: Callable[[], object]) -> float:
    """Return the seconds that a piece of work takes: the middle one of a few times."""
    import torch

    found = []
    for _ in range(RUNS):
        began = time.monotonic()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        found.append(time.monotonic() - began)
    return statistics.median(found)


def make_large_model(like: Any) -> Any:  # noqa: ANN401
    """Return a model of the shape of Qwen2.5-0.5B with random weights, on the device of another one."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=151936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
    )
    return Qwen2ForCausalLM(config).to(like.device, like.dtype).eval()


def main() -> None:
    """Measure the small model on all rows or, with ``large``, the larger one on a few; print JSON."""
    from evaluator import Setup
    from evaluator_baseline import load, make_search

    fields = json.loads(sys.argv[2])
    setup = Setup(tuple(fields["checkpoints"]), fields["test_data"], fields["index"])
    tokenizer, model, rows, _ = load(setup)
    if sys.argv[1] == "large":
        model, rows = make_large_model(model), rows[:FEW_ROWS]
    share, seconds = share_of_products(model, make_search(setup, tokenizer, model, rows))
    print(json.dumps({"share": share, "seconds": seconds, "rows": len(rows)}))


if __name__ == "__main__":
    main()
