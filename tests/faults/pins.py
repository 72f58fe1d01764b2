"""Faults around what is kept for evaluations: a script that edits its checkpoint, and a disk that fills."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

from faults.files import prepare_watching, safetensors, stage, write_at_once
from faults.registry import kind
from faults.uploads import end_with_sigterm
from faults.world import Skip, Started, World

#: What people's scripts do to a checkpoint before they load it; each in place, as `sed -i` is not.
_EDITS = (
    """printf '{"repaired": true}' >"$CKPT_LIST/config.json" """,
    """echo ' ' >>"$CKPT_LIST/config.json" """,
    """sed -i s/qwen2/qwen3/ "$CKPT_LIST/config.json" """,
    """rm -f "$CKPT_LIST/tokenizer_config.json" """,
    """truncate -s 0 "$CKPT_LIST/tokenizer_config.json" """,
    """chmod 600 "$CKPT_LIST/config.json"; touch "$CKPT_LIST/config.json" """,
    """mkdir "$CKPT_LIST/cache"; echo x >"$CKPT_LIST/cache/x" """,
    """mv "$CKPT_LIST/config.json" "$CKPT_LIST/config.json.orig"; echo '{}' >"$CKPT_LIST/config.json" """,
)


@kind("script-edits")
def script_edits(world: World) -> None:
    """A script that edits its checkpoint, and sometimes fails then, while the trainer keeps or deletes it."""
    chance = world.random
    edits = chance.sample(_EDITS, chance.randint(1, 3))
    fails = '[ -e "control/tried-$name" ] || { touch "control/tried-$name"; [ ! -e "control/fails-$name" ]; }'
    prepare_watching(world, hook="\n".join([*edits, fails]))
    started = _watching(world)
    originals: dict[Path, bytes] = {}
    before = None
    for step in range(10, 10 * chance.randint(4, 6), 10):
        folder = world.repository.model_dir / f"checkpoint-{step}"
        files = stage(world, step, chance.uniform(0, 0.8))
        if chance.random() < 0.4:
            (world.repository.control / f"fails-{folder.name}").touch()
        write_at_once(folder, files)
        originals.update({folder / name: content for name, content in files.items()})
        world.complete.add(step)
        time.sleep(chance.uniform(0.2, 1.0))
        if before is not None and chance.random() < 0.5:
            shutil.rmtree(before)
            originals = {path: content for path, content in originals.items() if path.parent != before}
        before = folder
    if chance.random() < 0.5:
        world.wait_for(lambda: False, started, chance.uniform(0, 2))
        end_with_sigterm(world, started)
    else:
        world.kill(started, everything=chance.random() < 0.5)
    world.at_judgement.append(lambda: _compare_originals(world, originals))


def _compare_originals(world: World, originals: dict[Path, bytes]) -> None:
    for path, content in originals.items():
        if not path.is_file() or path.read_bytes() != content or path.stat().st_mode & 0o777 != 0o644:
            world.verdict.count("harmed", f"{path.parent.name}/{path.name} is not as its trainer left it")
    for folder in {path.parent for path in originals}:
        if extra := {path.name for path in folder.iterdir()} - {path.name for path in originals}:
            world.verdict.count("harmed", f"{folder.name} holds {extra}")


@kind("disk-fills")
def disk_fills(world: World) -> None:
    """A script that fails for a while, beside a training with `save_total_limit=2` on a disk on which it
    fits alone: the training lives, and what is left when the script is repaired is evaluated.
    """
    chance = world.random
    prepare_watching(world, hook="[ ! -e control/broken ]")
    unit = chance.randint(200, 800) * 1024
    # Three checkpoints at a time; and what the sidecar promises to leave free is one and a half.
    _mount(world, int(3 * unit * (3 + chance.uniform(1.6, 2.6))))
    broken = world.repository.control / "broken"
    broken.touch()
    started = world.watch("run")
    world.wait_for(lambda: "watching" in started.command.output, started)
    steps = list(range(10, 10 * chance.randint(16, 22), 10))
    repaired_at = chance.choice(steps[12:])
    for step in steps:
        folder = world.repository.model_dir / f"checkpoint-{step}"
        files = stage(world, step, 0.05)
        files = {"padding.safetensors": safetensors(bytes(unit)), **files}
        files["optimizer.pt"] = bytes(2 * unit)
        try:
            write_at_once(folder, files)
        except OSError as error:
            world.verdict.count("harmed", f"the training died of {error} at {folder.name}")
            break
        if step == repaired_at:
            broken.unlink()
            world.tell("the script is repaired")
        shutil.rmtree(world.repository.model_dir / f"checkpoint-{step - 20}", ignore_errors=True)
        time.sleep(chance.uniform(0.15, 0.6))
    if chance.random() < 0.5:
        world.wait_for(lambda: False, started, chance.uniform(0, 3))
        end_with_sigterm(world, started)
    else:
        world.kill(started)
    broken.unlink(missing_ok=True)
    world.complete.update(steps[-2:])
    world.fleeting.update(steps[:-2])

    def again() -> Started:
        world.wait(world.start("retry", "--sft-root", str(world.repository.model_dir)))
        return world.watch()

    world.again = again
    world.at_judgement.append(lambda: _look_for_the_lost(world, started, steps))


def _mount(world: World, size: int) -> None:
    disk = world.repository.model_dir.parent
    if os.getuid() != 0 or shutil.which("mount") is None:
        raise Skip("a small disk can be mounted by root only")
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        raise Skip("no disk can be mounted here")
    world.at_close.append(lambda: subprocess.run(["umount", "-l", str(disk)], check=True) and None)
    world.repository.model_dir.mkdir()


def _look_for_the_lost(world: World, started: Started, steps: list[int]) -> None:
    """What has no result must be said to be lost, and why: in the ledger, or in the log of one that was
    killed before it could write that down.
    """
    (path,) = (world.root / "state/wandb_eval_sidecar").glob("*.json")
    known = json.loads(path.read_text())["checkpoints"]
    done = {step for _, step in world.results()}
    for step in sorted(set(steps) - done):
        evidence = "; ".join(known.get(str(step), {}).get("evidence", ()))
        is_told = f"checkpoint-{step}: its pin is given up" in started.command.errors
        if "pin given up" not in evidence and "too little free space" not in evidence and not is_told:
            world.verdict.count("missed", f"checkpoint-{step} has no result, and no reason: {evidence}")


def _watching(world: World) -> Started:
    started = world.watch("run")
    world.wait_for(lambda: "watching" in started.command.output, started)
    return started
