"""What trials write to disk: results as an evaluation leaves them, checkpoints as a trainer does."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import time
from pathlib import Path

from faults.world import RUN_ID, World

#: Models of the uploads: each name gives another run.
NAMES = tuple(f"Instruments-grec-sft-qwen4B-4-{size}-dsz0" for size in (64, 128, 256, 512))

_SCRIPT = """#!/usr/bin/env bash
# Evaluates one checkpoint, and says whether it was whole and unchanged from beginning to end.
set -eu
name=$(basename "$CKPT_LIST")
here=$PWD
result=results/$(basename "$(dirname "$CKPT_LIST")")/$name
is_whole() {
  (cd "$CKPT_LIST" && xargs cksum <"$here/control/names-$name") 2>/dev/null |
    cmp -s - "control/expected-$name" && echo 1 || echo 0
}
intact=$(is_whole)
echo "$name" >>control/calls
sleep "$(cat "control/pause-$name")"
[ "$(is_whole)" = 1 ] || intact=0
mkdir -p "$result"
value=$((${name#checkpoint-} * 37 % 10000))
# Not atomic, as anybody's script.
printf '{"HR@10": 0.%04d, "NDCG@10": 0.%04d,' "$value" "$((value / 2))" >"$result/metrics.json"
sleep 0.03
printf ' "intact": %d}' "$intact" >>"$result/metrics.json"
"""


_SECOND_LOOK = '[ "$(is_whole)" = 1 ] || intact=0\n'
#: Of this one the numbers are the weights' own, whatever the step: it may be saved again.
_SCRIPT_BY_WEIGHTS = """#!/usr/bin/env bash
# Evaluates one checkpoint: its number follows from the weights, which are to be the same at the end.
set -eu
name=$(basename "$CKPT_LIST")
result=results/$(basename "$(dirname "$CKPT_LIST")")/$name
digest() { cat "$CKPT_LIST"/model*.safetensors | cksum | cut -d ' ' -f 1; }
before=$(digest)
echo "$name" >>control/calls
sleep "$(cat "control/pause-$name")"
[ "$(digest)" = "$before" ] && grep -qx "$before" "control/known-$name" && intact=1 || intact=0
mkdir -p "$result"
value=$((before % 10000))
printf '{"HR@10": 0.%04d, "NDCG@10": 0.%04d,' "$value" "$((value / 2))" >"$result/metrics.json"
sleep 0.03
printf ' "intact": %d}' "$intact" >>"$result/metrics.json"
"""


def write_result(world: World, model: str, step: int, *, whole: bool = True) -> None:
    """Write one ``metrics.json`` with numbers of chance, at once or, where not `whole`, in place."""
    chance = world.random
    metrics = {"HR@10": round(chance.random(), 4), "NDCG@10": round(chance.random(), 6)}
    if chance.random() < 0.3:
        metrics["loss"] = chance.random() * 10
    folder = world.root / "results" / model / f"checkpoint-{step}"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "metrics.json"
    text = json.dumps(metrics)
    if whole:
        temporary = folder / ".metrics.json.tmp"
        temporary.write_text(text)
        temporary.replace(path)
        return
    cut = chance.randrange(len(text))
    path.write_text(text[:cut])
    time.sleep(chance.uniform(0, 0.1))
    path.write_text(text)


def write_results(world: World, most_models: int = 4) -> None:
    """Write the results of some models, and the manifest that names their runs."""
    chance = world.random
    for model in NAMES[: chance.randint(1, most_models)]:
        for step in chance.sample(range(10, 300, 10), chance.randint(2, 6)):
            write_result(world, model, step)
    prepare(world)


def prepare(world: World) -> None:
    """Write the manifest with the real command, and learn the runs from it."""
    started = world.start("prepare-manifest", "--results-root", "./results")
    assert world.wait(started) == 0, started.command.output
    manifest = json.loads((world.root / "results/.wandb_eval_manifest.json").read_text())
    entries = manifest["models"]
    listed = entries.values() if isinstance(entries, dict) else entries
    world.models = {entry["model_dir"]: entry["wandb_run_id"] for entry in listed}


def add_results(world: World) -> list[str]:
    """Write one to three more results of known models: later steps, and late ones."""
    chance = world.random
    touched = []
    for model in chance.sample(sorted(world.models), chance.randint(1, len(world.models))):
        for step in chance.sample(range(5, 400, 10), chance.randint(1, 3)):
            write_result(world, model, step)
        touched.append(model)
    world.tell(f"more results of {', '.join(touched)}")
    return touched


# -- checkpoints ------------------------------------------------------------------------------------------


def prepare_watching(world: World, *, hook: str = "", by_weights: bool = False) -> None:
    """Put the evaluation script into place; the model has one run.

    Args:
        world: The trial.
        hook: What the script does after it has looked at its checkpoint; if it does anything, it does not
            look again.
        by_weights: Whether the numbers follow from the weights instead of the step.
    """
    script = _SCRIPT_BY_WEIGHTS if by_weights else _SCRIPT
    if hook:
        script = script.replace(_SECOND_LOOK, f"{hook}\n")
    world.repository.script.write_text(script)
    world.models = {world.repository.model: RUN_ID}
    world.again = world.watch


def stage(world: World, step: int, pause: float) -> dict[str, bytes]:
    """The files of a checkpoint in a trainer's order, and what the script has to find in it.

    Args:
        world: The trial.
        step: The checkpoint's step.
        pause: How long its evaluation takes, in seconds.
    """
    chance = world.random
    count = chance.choice((1, 1, 2, 3))
    files = {"config.json": json.dumps({"model_type": "qwen2", "step": step}).encode()}
    shards = [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
    for name in shards if count > 1 else ["model.safetensors"]:
        files[name] = safetensors(chance.randbytes(chance.randint(200, 5000)))
    if count > 1:
        index = {"metadata": {}, "weight_map": {f"w{place}": name for place, name in enumerate(shards)}}
        files["model.safetensors.index.json"] = json.dumps(index).encode()
    control = world.repository.control
    names = list(files)
    (control / f"names-checkpoint-{step}").write_text("\n".join(names) + "\n")
    staged = world.folder / "staged" / f"checkpoint-{step}"
    write_at_once(staged, files)
    sums = subprocess.run(["cksum", *names], cwd=staged, stdout=subprocess.PIPE, check=True).stdout
    (control / f"expected-checkpoint-{step}").write_bytes(sums)
    (control / f"pause-checkpoint-{step}").write_text(f"{pause:.3f}")
    shutil.rmtree(staged)
    files["tokenizer_config.json"] = b"{}"
    files["optimizer.pt"] = chance.randbytes(100)
    files["trainer_state.json"] = json.dumps({"global_step": step}).encode()
    return files


def announce(world: World, step: int, files: dict[str, bytes]) -> None:
    """Let the script know these weights of a step, and the trial the number that they have."""
    content = b"".join(
        files[name] for name in sorted(files) if name.startswith("model") and name.endswith("s")
    )
    summed = subprocess.run(["cksum"], input=content, stdout=subprocess.PIPE, check=True).stdout.split()[0]
    with (world.repository.control / f"known-checkpoint-{step}").open("ab") as file:
        file.write(summed + b"\n")
    world.values[step] = int(f"{int(summed) % 10000}") / 10000


def safetensors(content: bytes) -> bytes:
    tensor = {"dtype": "U8", "shape": [len(content)], "data_offsets": [0, len(content)]}
    header = json.dumps({"w": tensor}).encode()
    return struct.pack("<Q", len(header)) + header + content


def write_at_once(folder: Path, files: dict[str, bytes]) -> None:
    """Write files one after the other without a pause."""
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def write_slowly(world: World, folder: Path, files: dict[str, bytes]) -> None:
    """Write files as a slow or strange trainer does: shards in any order, with pauses in the middle,
    under a temporary name, too long and then cut, or first empty; ``trainer_state.json`` last.
    """
    chance = world.random
    folder.mkdir(parents=True)
    names = [name for name in files if name != "trainer_state.json"]
    if chance.random() < 0.7:
        chance.shuffle(names)
    for name in [*names, "trainer_state.json"]:
        path, content = folder / name, files[name]
        how = chance.choice(("whole", "parts", "renamed", "emptied"))
        target = path.with_name(f"{name}.tmp") if how == "renamed" else path
        if how == "emptied":
            path.write_bytes(content[: chance.randrange(len(content))])
            _pause(world)
            path.write_bytes(b"")
            _pause(world)
        with target.open("wb") as file:
            for part in _parts(world, content, 1 if how in ("whole", "renamed") else 3):
                file.write(part)
                file.flush()
                _pause(world)
        if target != path:
            target.replace(path)


def _parts(world: World, content: bytes, most: int) -> list[bytes]:
    cuts = sorted(world.random.sample(range(1, len(content)), min(most, len(content)) - 1))
    return [content[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(content)])]


def _pause(world: World) -> None:
    if world.random.random() < 0.5:
        time.sleep(world.random.uniform(0, 0.4))
    elif world.random.random() < 0.05:
        time.sleep(1.2)
