"""Pins: what rotation deletes stays whole for its evaluation, and nothing of ours lies in the model dir."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from checkpoint_files import safetensors, trainer_files, write_checkpoint, write_files
from eval_sidecar.checkpoints import linking
from eval_sidecar.checkpoints.listing import list_checkpoints, old_pins_folder
from eval_sidecar.checkpoints.pinning import Need, Pins
from eval_sidecar.checkpoints.space import Limits
from eval_sidecar.errors import CheckpointError
from eval_sidecar.types import Checkpoint

STEP = 495
NO_LIMITS = Limits(0)


class Model:
    """A model dir with its pins, and what is still to be done with its checkpoints."""

    def __init__(self, root: Path, *, limits: Limits = NO_LIMITS) -> None:
        self.folder = root / "saves" / "my-model"
        self.folder.mkdir(parents=True)
        self.elsewhere = root / "state"
        self.elsewhere.mkdir()
        self.needs: dict[int, Need] = {}
        self.limits = limits
        self.pins = self.new_pins()

    def new_pins(self) -> Pins:
        def need(step: int) -> Need:
            return self.needs.get(step, Need.EVALUATION)

        return Pins(self.folder, "my-model", elsewhere=self.elsewhere, limits=self.limits, need=need)

    def write(self, step: int = STEP, files: object = None) -> Path:
        return write_checkpoint(self.folder, step, files).path

    def use(self, step: int = STEP) -> Path:
        """Hold a checkpoint, and give it to an evaluation."""
        self.pins.look()
        self.pins.prepare(step)
        return self.pins.check_out(step).path

    @property
    def own(self) -> Path:
        return self.folder.parent / ".eval-sidecar"

    def remains(self) -> list[Path]:
        return [path for path in self.own.rglob("*") if not path.is_dir()]


@pytest.fixture
def model(tmp_path) -> Model:
    return Model(tmp_path)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# -- what a pin is ---------------------------------------------------------------------------------------


def test_an_evaluation_gets_the_checkpoints_own_name_below_the_models_name_beside_the_model_dir(model):
    model.write()
    assert model.use() == model.own / "my-model" / "checkpoint-495"
    assert list_checkpoints(model.own / "my-model") == [Checkpoint(STEP, model.use())]


def test_nothing_of_ours_lies_in_the_model_dir(model):
    model.write()
    model.use()
    assert names(model.folder) == {"checkpoint-495"}
    assert names(model.folder / "checkpoint-495") == set(trainer_files(STEP))


def test_whatever_has_appeared_is_kept_before_it_is_whole(model):
    folder = model.write(files={"config.json": b"{}", "model.safetensors": safetensors(8)})
    assert model.pins.look()
    shutil.rmtree(folder)
    assert names(model.pins.held()[STEP].path) == {"config.json", "model.safetensors"}


def test_a_look_says_whether_there_is_a_new_file(model):
    folder = model.write(files={"config.json": b"{}"})
    assert model.pins.look()
    assert not model.pins.look()
    write_files(folder, {"trainer_state.json": b"{}"})
    assert model.pins.look([STEP])


def test_a_look_at_some_steps_is_one_at_no_others(model):
    model.write(10)
    model.write(20)
    model.pins.look([20])
    assert list(model.pins.held()) == [20]


def test_rotation_of_the_original_leaves_the_pin_whole(model):
    folder = model.write()
    model.pins.look()
    shutil.rmtree(folder)
    model.pins.look()
    used = model.use()
    files = trainer_files(STEP)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "trainer_state.json"):
        assert (used / name).read_bytes() == files[name]


def test_rotation_in_the_middle_of_a_deletion_leaves_the_pin_whole(model):
    folder = model.write()
    model.pins.look()
    for name in ("training_args.bin", "tokenizer.json"):
        (folder / name).unlink()
    model.pins.look()
    assert {"training_args.bin", "tokenizer.json"} <= names(model.use())


def test_weights_take_no_disk_space_of_their_own(model):
    folder = model.write()
    assert (model.use() / "model.safetensors").samefile(folder / "model.safetensors")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "trainer_state.json", "modeling_own.py"])
def test_what_a_script_writes_into_its_copy_of_a_small_file_does_not_reach_the_trainers(model, name):
    folder = model.write()
    write_files(folder, {name: b"{}"})
    copy = model.use() / name
    with copy.open("r+b") as file:
        file.write(b"[]")
    assert (folder / name).read_bytes() == b"{}"


def test_a_copy_has_the_time_of_what_it_was_made_from(model):
    folder = model.write()
    os.utime(folder / "config.json", (1000, 1000))
    assert (model.use() / "config.json").stat().st_mtime == 1000


def test_every_attempt_gets_the_trainers_files_whatever_the_one_before_did_to_its_copy(model):
    model.write()
    (model.use() / "config.json").write_bytes(b"spoilt")
    (model.pins.check_out(STEP).path / "tokenizer.json").unlink()
    used = model.pins.check_out(STEP).path
    assert (used / "config.json").read_bytes() == trainer_files(STEP)["config.json"]
    assert (used / "tokenizer.json").exists()


def test_a_large_file_under_any_name_is_linked(model, monkeypatch):
    monkeypatch.setattr(linking, "_MOST_COPIED", 10)
    folder = model.write()
    write_files(folder, {"item_embeddings.npy": bytes(11)})
    assert (model.use() / "item_embeddings.npy").samefile(folder / "item_embeddings.npy")


@pytest.mark.parametrize(
    "name",
    [
        *("optimizer.pt", "optimizer.bin", "optimizer_0", "scheduler.pt", "rng_state.pth", "rng_state_3.pth"),
        *("scaler.pt", "random_states_0.pkl", "global_step495", "zero_to_fp32.py", "latest"),
        *("pytorch_model_fsdp.bin", "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"),
    ],
)
def test_an_evaluation_gets_no_state_of_the_training_beside_whole_weights(model, name):
    folder = model.write(files={"model.safetensors": safetensors(8)})
    if name in ("global_step495", "optimizer_0"):
        write_files(folder / name, {"shard": b"x"})
    else:
        write_files(folder, {name: b"x"})
    assert names(model.use()) == {"model.safetensors"}


SHARDS = ("global_step495", "latest", "zero_to_fp32.py")


@pytest.mark.parametrize("weights", [{}, {"model.safetensors": safetensors(0, 0)}], ids=["none", "empty"])
def test_deepspeeds_shards_are_kept_if_they_are_the_only_weights(model, weights):
    folder = model.write(files={"config.json": b"{}", "optimizer.pt": b"x", **weights})
    write_files(folder, {"latest": b"global_step495", "zero_to_fp32.py": b"x"})
    write_files(folder / "global_step495", {"zero_pp_rank_0_mp_rank_00_optim_states.pt": b"x"})
    used = model.use()
    assert set(SHARDS) <= names(used)
    assert names(used / "global_step495") == {"zero_pp_rank_0_mp_rank_00_optim_states.pt"}
    assert "optimizer.pt" not in names(used)
    model.pins.look()
    assert set(SHARDS) <= names(model.pins.check_out(STEP).path)


def test_fsdp_weights_in_one_file_are_kept_if_they_are_the_only_ones(model):
    model.write(files={"config.json": b"{}", "pytorch_model_fsdp.bin": b"x"})
    assert "pytorch_model_fsdp.bin" in names(model.use())


def test_fsdp_shards_are_kept(model):
    folder = model.write(files={"trainer_state.json": b"{}"})
    write_files(folder / "pytorch_model_fsdp_0", {".metadata": b"x", "__0_0.distcp": b"x"})
    assert names(model.use() / "pytorch_model_fsdp_0") == {".metadata", "__0_0.distcp"}


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "chat_template.jinja", "modeling_custom.py", "vocab.json", "latest_notes.md"],
)
def test_everything_else_is_kept(model, name):
    write_files(model.write(), {name: b"x"})
    assert (model.use() / name).exists()


def test_folders_in_a_checkpoint_are_kept_with_their_files(model):
    write_files(model.write() / "reference" / "adapter", {"adapter_config.json": b"{}"})
    assert (model.use() / "reference" / "adapter" / "adapter_config.json").read_bytes() == b"{}"


def test_names_that_a_writer_will_change_are_not_kept(model):
    write_files(model.write(), {".tmpX1b2c3": b"x", "model.safetensors.tmp": b"x"})
    assert not {".tmpX1b2c3", "model.safetensors.tmp"} & names(model.use())


# -- files that come later -------------------------------------------------------------------------------


def test_a_file_that_comes_after_the_proof_is_taken_in_until_the_evaluation_starts(model):
    folder = model.write()
    model.pins.look()
    model.pins.prepare(STEP)
    write_files(folder, {"preprocessor_config.json": b"{}"})
    model.pins.look()
    assert (model.pins.check_out(STEP).path / "preprocessor_config.json").exists()


def test_a_file_that_comes_during_an_attempt_is_there_for_the_next(model):
    folder = model.write()
    model.use()
    model.needs[STEP] = Need.RUNNING
    write_files(folder, {"preprocessor_config.json": b"{}"})
    model.pins.look()
    model.needs[STEP] = Need.EVALUATION
    assert (model.use() / "preprocessor_config.json").exists()


def replace_file(path: Path, content: bytes) -> None:
    write_files(path.parent, {".tmp-new": content})
    (path.parent / ".tmp-new").replace(path)


def test_weights_that_are_replaced_after_the_proof_are_those_that_are_evaluated(model):
    folder = model.write()
    model.pins.look()
    model.pins.prepare(STEP)
    replace_file(folder / "model.safetensors", safetensors(4))
    model.pins.look()
    assert (model.pins.check_out(STEP).path / "model.safetensors").read_bytes() == safetensors(4)


def test_a_folder_that_is_made_anew_has_nothing_of_the_one_before(model):
    shutil.rmtree(model.write())
    model.write()
    model.pins.look()
    shutil.rmtree(model.folder / "checkpoint-495")
    model.write(files={"config.json": b'{"new": 1}'})
    model.pins.look()
    assert names(model.pins.held()[STEP].path) == {"config.json"}


def test_a_folder_that_is_made_anew_does_not_touch_what_an_evaluation_reads(model):
    folder = model.write()
    used = model.use()
    model.needs[STEP] = Need.RUNNING
    shutil.rmtree(folder)
    model.write(files={"config.json": b'{"new": 1}'})
    model.pins.look()
    assert (used / "model.safetensors").read_bytes() == trainer_files(STEP)["model.safetensors"]


# -- links -----------------------------------------------------------------------------------------------


def test_a_relative_link_in_a_checkpoint_still_leads_to_its_content(model):
    write_files(model.folder, {"shared-tokenizer.json": b"shared"})
    (model.write() / "tokenizer.model").symlink_to(Path("..") / "shared-tokenizer.json")
    assert (model.use() / "tokenizer.model").read_bytes() == b"shared"


def test_a_link_to_a_folder_outside_stays_one_as_it_may_lead_to_a_data_set(model):
    write_files(model.folder / "data", {"train.json": b"{}"})
    (model.write() / "data").symlink_to(Path("..") / "data")
    used = model.use()
    assert (used / "data").is_symlink()
    assert (used / "data" / "train.json").read_bytes() == b"{}"


def test_a_link_to_a_folder_inside_leads_to_the_one_beside_it(model):
    folder = model.write()
    write_files(folder / "policy", {"adapter_config.json": b"{}"})
    (folder / "default").symlink_to("policy")
    used = model.use()
    assert not model.pins.look()
    shutil.rmtree(folder)
    assert (used / "default" / "adapter_config.json").read_bytes() == b"{}"


def test_a_link_in_a_circle_is_no_error(model):
    folder = model.write()
    (folder / "circle").symlink_to(folder)
    (folder / "itself").symlink_to("itself")
    for number in range(8):
        (folder / f"circle-{number}").symlink_to(folder.parent)
    assert (model.use() / "config.json").exists()


def test_a_link_to_weights_on_another_disk_stays_a_link(model, monkeypatch):
    write_files(model.folder.parent, {"base.safetensors": safetensors(8)})
    (model.write() / "base.safetensors").symlink_to(model.folder.parent / "base.safetensors")
    real = os.link

    def refuse(source, target, **options):
        if Path(source).name == "base.safetensors":
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        real(source, target, **options)

    monkeypatch.setattr(os, "link", refuse)
    assert (model.use() / "base.safetensors").read_bytes() == safetensors(8)


# -- beside the checkpoint -------------------------------------------------------------------------------


def test_the_parent_of_what_an_evaluation_gets_shows_the_model_dirs_other_files(model):
    write_files(model.folder, {"tokenizer.json": b"the model's", "all_results.json": b"{}"})
    write_files(model.folder / "runs", {"events": b"x"})
    model.write(10)
    model.write(20)
    parent = model.use(10).parent
    assert parent.name == "my-model"
    assert names(parent) == {"checkpoint-10", "tokenizer.json", "all_results.json", "runs"}
    assert (parent / "tokenizer.json").read_bytes() == b"the model's"
    assert [checkpoint.step for checkpoint in list_checkpoints(parent)] == [10]


def test_those_files_are_kept_up_to_date(model):
    write_files(model.folder, {"old.json": b"x"})
    model.write()
    model.use()
    (model.folder / "old.json").unlink()
    write_files(model.folder, {"new.json": b"y"})
    parent = model.use().parent
    assert names(parent) == {"checkpoint-495", "new.json"}


def test_a_file_that_a_script_left_there_is_not_removed(model):
    model.write()
    write_files(model.use().parent, {"cache.bin": b"x"})
    model.pins.release(STEP)
    assert (model.own / "my-model" / "cache.bin").exists()


def test_two_models_share_the_folder_and_not_its_content(tmp_path):
    first, second = Model(tmp_path / "a"), Model(tmp_path / "b")
    shutil.move(second.folder, first.folder.with_name("other"))
    other = Pins(
        first.folder.with_name("other"),
        "other",
        elsewhere=None,
        limits=Limits(0),
        need=lambda step: Need.EVALUATION,
    )
    first.write(10)
    write_checkpoint(first.folder.with_name("other"), 10, {"config.json": b"other"})
    first.use(10)
    other.look()
    other.prepare(10)
    first.pins.release(10)
    assert other.check_out(10).path.joinpath("config.json").read_bytes() == b"other"


# -- where there are no links ----------------------------------------------------------------------------


def refuse_links(monkeypatch: pytest.MonkeyPatch, code: int, where: str = "") -> None:
    real = os.link

    def refuse(source, target, **options):
        if where in str(target):
            raise OSError(code, os.strerror(code))
        real(source, target, **options)

    monkeypatch.setattr(os, "link", refuse)


@pytest.mark.parametrize("code", [errno.EPERM, errno.EXDEV, errno.EOPNOTSUPP, errno.EMLINK])
def test_a_file_system_without_hard_links_is_a_reason_and_leaves_nothing(model, monkeypatch, code):
    refuse_links(monkeypatch, code)
    model.write()
    assert not model.pins.look()
    assert model.pins.held() == {}
    assert "no hard links can be made here" in model.pins.why_not(STEP)
    assert os.strerror(code) in model.pins.why_not(STEP)
    assert not model.own.exists()
    assert list(model.elsewhere.iterdir()) == []


def test_a_file_system_without_hard_links_is_tried_once_a_checkpoint(model, monkeypatch):
    refuse_links(monkeypatch, errno.EXDEV)
    model.write()
    model.pins.look()
    monkeypatch.setattr(os, "link", lambda *arguments, **options: pytest.fail("tried again"))
    model.pins.look()


def test_a_file_that_comes_later_and_cannot_be_linked_leaves_no_half_of_a_pin(model, monkeypatch):
    folder = model.write(files={"config.json": b"{}"})
    model.pins.look()
    refuse_links(monkeypatch, errno.EPERM, where="model.safetensors")
    write_files(folder, {"model.safetensors": safetensors(8)})
    model.pins.look()
    assert model.pins.held() == {}
    assert "another user's?" in model.pins.why_not(STEP)


def test_a_disk_that_is_full_for_a_moment_is_tried_again(model, monkeypatch):
    model.write()
    with monkeypatch.context() as moment:
        refuse_links(moment, errno.ENOSPC)
        model.pins.look()
    assert model.pins.look()
    assert model.pins.why_not(STEP) == ""


def test_without_links_beside_the_model_dir_pins_are_kept_elsewhere_with_a_word(model, monkeypatch):
    refuse_links(monkeypatch, errno.EXDEV, where=str(model.own))
    model.write()
    used = model.use()
    assert used.is_relative_to(model.elsewhere)
    assert (used.parent.name, used.name) == ("my-model", "checkpoint-495")
    notice = model.pins.take_notice()
    assert "no hard links" in notice and str(model.elsewhere) in notice
    assert model.pins.take_notice() == ""
    model.pins.release(STEP)
    assert list(model.elsewhere.iterdir()) == []


def test_a_folder_that_belongs_to_another_user_is_left_to_him_with_a_word(model, monkeypatch):
    real = Path.mkdir

    def refuse(path, *arguments, **options):
        if path.is_relative_to(model.own):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        real(path, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", refuse)
    model.write()
    own = model.folder.parent / f".eval-sidecar-{os.getuid()}"
    assert model.use() == own / "my-model" / "checkpoint-495"
    notice = model.pins.take_notice()
    assert "Permission denied" in notice and str(own) in notice


def test_what_lies_in_the_place_of_our_folder_is_left_alone_and_keeps_no_pin_for_ever(model):
    model.own.write_text("somebody's file")
    model.write()
    own = model.folder.parent / f".eval-sidecar-{os.getuid()}"
    assert model.use() == own / "my-model" / "checkpoint-495"
    assert str(own) in model.pins.take_notice()
    model.pins.release(STEP)
    assert not own.exists()
    assert model.own.read_text() == "somebody's file"


def test_a_model_dir_that_is_a_link_is_pinned_beside_its_target_if_it_cannot_be_beside_the_link(
    tmp_path, monkeypatch
):
    target = tmp_path / "disk" / "run-7"
    write_checkpoint(target, STEP)
    link = tmp_path / "saves" / "latest"
    link.parent.mkdir()
    link.symlink_to(target)
    refuse_links(monkeypatch, errno.EXDEV, where=str(link.parent))
    pins = Pins(link, "latest", elsewhere=None, limits=Limits(0), need=lambda step: Need.EVALUATION)
    pins.look()
    assert pins.prepare(STEP).path == tmp_path / "disk" / ".eval-sidecar" / "latest" / "checkpoint-495"


def test_a_full_disk_is_no_lack_of_links(model, monkeypatch):
    refuse_links(monkeypatch, errno.ENOSPC)
    model.write()
    model.pins.look()
    assert "No space left" in model.pins.why_not(STEP)
    assert "no hard links" not in model.pins.why_not(STEP)


# -- letting go ------------------------------------------------------------------------------------------


def test_releasing_the_last_removes_the_folders_above_it_and_keeps_the_original(model):
    folder = model.write()
    write_files(model.folder, {"tokenizer.json": b"x"})
    model.use()
    model.pins.release(STEP)
    assert not model.own.exists()
    assert names(folder) == set(trainer_files(STEP))
    assert (model.folder / "tokenizer.json").read_bytes() == b"x"


def test_releasing_one_keeps_the_others(model):
    model.write(10)
    model.write(20)
    model.use(10)
    model.use(20)
    model.pins.release(10)
    assert list(model.pins.held()) == [20]
    assert [checkpoint.step for checkpoint in list_checkpoints(model.own / "my-model")] == [20]


def test_releasing_what_is_not_pinned_does_nothing(model):
    folder = model.write()
    model.pins.release(STEP)
    assert folder.exists()


def test_what_needs_no_evaluation_is_not_kept(model):
    model.write()
    model.needs[STEP] = Need.NOTHING
    model.pins.look()
    assert not model.own.exists()


def test_a_pin_that_cannot_be_removed_is_an_error_that_names_it(model, monkeypatch):
    model.write()
    model.use()

    def refuse(path, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.raises(CheckpointError, match=r"checkpoint-495: cannot be removed \(Permission denied\)"):
        model.pins.release(STEP)


def test_what_a_killed_process_left_half_made_is_removed_by_the_next(model):
    write_files(model.own / ".held" / "my-model" / ".making-999999", {"model.safetensors": b"x"})
    model.write()
    model.use()
    assert names(model.own / ".held" / "my-model") == {"checkpoint-495"}


def test_a_pin_outlives_its_process(model):
    folder = model.write()
    model.use()
    shutil.rmtree(folder)
    model.pins = model.new_pins()
    assert (model.use() / "model.safetensors").exists()


# -- the place of the first versions ---------------------------------------------------------------------


def old_pin(model: Model, step: int) -> Path:
    folder = old_pins_folder(model.folder) / f"checkpoint-{step}"
    write_files(folder, trainer_files(step))
    (model.folder / ".eval-sidecar" / "lock").touch()
    return folder


def test_pins_in_the_model_dir_are_moved_out_of_it_and_their_folder_is_removed(model):
    old_pin(model, 10)
    assert (model.use(10) / "model.safetensors").exists()
    assert list(model.folder.iterdir()) == []


def test_an_old_pin_that_a_job_reads_is_left_until_it_is_released(model):
    folder = old_pin(model, 10)
    model.needs[10] = Need.RUNNING
    model.pins.look()
    assert (folder / "model.safetensors").exists()
    model.needs[10] = Need.NOTHING
    model.pins.release(10)
    model.pins.look()
    assert list(model.folder.iterdir()) == []


def test_old_pins_of_evaluated_checkpoints_go(model):
    old_pin(model, 10)
    model.needs[10] = Need.NOTHING
    model.pins.look()
    assert list(model.folder.iterdir()) == []
    assert model.pins.held() == {}


# -- room ------------------------------------------------------------------------------------------------

MB = 2**20


class Disk:
    """A disk of 1,000 MB. What is on it and not ours is `used`; pins count with what they hold."""

    def __init__(self, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
        self.used = 0
        self.model = model
        monkeypatch.setattr(shutil, "disk_usage", self.usage)

    def usage(self, folder: object) -> object:
        files = {
            (status.st_ino): status.st_size
            for path in self.model.folder.parent.rglob("*")
            if path.is_file() and (status := path.stat())
        }
        free = 1000 * MB - self.used - sum(files.values())
        return shutil._ntuple_diskusage(1000 * MB, 1000 * MB - free, free)


@pytest.fixture
def disk(model, monkeypatch) -> Disk:
    return Disk(model, monkeypatch)


def write_large(model: Model, step: int, *, optimizer: int = 0) -> Path:
    """A checkpoint of 10 MB of weights, in sparse files."""
    folder = model.write(step, files={"trainer_state.json": b"{}"})
    header = safetensors(10 * MB)
    (folder / "model.safetensors").write_bytes(header)
    if optimizer:
        with (folder / "optimizer.pt").open("wb") as file:
            file.truncate(optimizer * MB)
    return folder


def rotate(model: Model, steps: range, **more: int) -> None:
    """Let a trainer write and delete checkpoints, as with a `save_total_limit` of one."""
    for step in steps:
        write_large(model, step, **more)
        model.pins.look()
        shutil.rmtree(model.folder / f"checkpoint-{step - 1}", ignore_errors=True)
    model.pins.look()


def test_pins_whose_original_is_there_count_for_nothing(model, disk):
    model.limits = Limits(0, most=1, size=5 * MB)
    model.pins = model.new_pins()
    for step in (10, 20, 30):
        write_large(model, step)
    model.pins.look()
    model.pins.look()
    assert sorted(model.pins.held()) == [10, 20, 30]
    assert model.pins.take_given_up() == {}


def test_no_more_than_so_many_that_the_trainer_has_deleted_are_kept_the_oldest_goes_first(model, disk):
    model.limits = Limits(0, most=2)
    model.pins = model.new_pins()
    rotate(model, range(1, 6))
    assert sorted(model.pins.held()) == [3, 4, 5]
    assert set(model.pins.take_given_up().values()) == {"there are more pins than --max-pins (2)"}


def test_they_take_no_more_space_than_they_may(model, disk):
    model.limits = Limits(0, size=25 * MB)
    model.pins = model.new_pins()
    rotate(model, range(1, 6))
    assert sorted(model.pins.held()) == [3, 4, 5]
    assert "--max-pin-size" in model.pins.take_given_up()[1]


def test_by_default_they_take_half_of_what_would_be_free_without_them(model, disk):
    disk.used = 1000 * MB - 60 * MB
    rotate(model, range(1, 8))
    assert sorted(model.pins.held()) == [5, 6, 7], "7 is still there"


def test_failed_ones_are_given_up_before_those_that_wait(model, disk):
    model.limits = Limits(0, most=2)
    model.pins = model.new_pins()
    model.needs = {2: Need.RETRY}
    rotate(model, range(1, 5))
    assert sorted(model.pins.held()) == [1, 3, 4]


def test_one_that_is_being_evaluated_is_never_given_up(model, disk):
    model.limits = Limits(0, most=1)
    model.pins = model.new_pins()
    write_large(model, 1)
    model.use(1)
    model.needs = {1: Need.RUNNING}
    rotate(model, range(2, 5))
    assert 1 in model.pins.held()
    assert (model.own / "my-model" / "checkpoint-1" / "model.safetensors").exists()


def test_the_trainings_next_checkpoint_always_has_room_with_its_optimizer(model, disk):
    disk.used = 1000 * MB - 130 * MB
    for step in range(1, 9):
        assert disk.usage(None).free > 30 * MB, f"no room for checkpoint-{step}"
        rotate(model, range(step, step + 1), optimizer=20)


def test_before_a_pin_is_given_up_the_optimizers_of_others_go(model, disk):
    disk.used = 1000 * MB - 130 * MB
    rotate(model, range(1, 4), optimizer=20)
    assert sorted(model.pins.held()) == [1, 2, 3]
    assert not (model.pins.held()[1].path / "optimizer.pt").exists()
    assert model.pins.take_given_up() == {}


def test_a_file_system_that_counts_deletions_late_does_not_cost_every_pin(model, monkeypatch):
    disk = Disk(model, monkeypatch)
    model.limits = Limits(500 * MB)
    model.pins = model.new_pins()
    rotate(model, range(1, 6))
    before = disk.usage(None)
    disk.used = before.free - 500 * MB + 5 * MB
    stale = disk.usage(None)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: stale)
    model.pins.look()
    assert sorted(model.pins.held()) == [2, 3, 4, 5]


def test_while_there_is_too_little_space_nothing_delays_a_deletion_of_the_trainers(model, disk):
    write_large(model, 1)
    model.pins.look()
    disk.used = 1000 * MB - 12 * MB
    model.pins.look()
    assert model.pins.held() == {}
    assert "1.5 times the training's largest checkpoint" in model.pins.lack
    disk.used = 0
    model.pins.look()
    assert list(model.pins.held()) == [1]
    assert model.pins.lack == ""


def test_failed_ones_whose_original_is_gone_are_released_at_the_end_and_the_others_kept(model):
    write_large(model, 1)
    write_large(model, 2)
    model.pins.look()
    shutil.rmtree(model.folder / "checkpoint-1")
    assert model.pins.release_failed([1, 2]) == [1]
    assert list(model.pins.held()) == [2]
