"""A model dir's name -> its data set, its codebook setting and its run, as real manifests have them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval_sidecar.manifest.manifest import Defaults, load_manifest, write_manifest
from eval_sidecar.manifest.run_ids import dataset_of_test_data, infer_cb_setting, infer_dataset, run_key

REAL_MANIFEST = (
    Path(__file__).resolve().parents[2] / "shared" / "data" / "results" / ".wandb_eval_manifest.json"
)

#: model dir, data set, codebook setting, run id; from a manifest that is in use.
KNOWN = [
    (
        "Games-grec-sft-qwen4B-4-256-dsz0",
        *("Games_grec", "cb256", "eval-b7617f0919dff467a6e8"),
    ),
    (
        "Instruments-grec-sft-qwen4B-4-64-dsz0",
        *("Instruments_grec", "cb64", "eval-088839ca53b688776ef3"),
    ),
    (
        "Instruments-mimionerec-sft-qwen4B-4-256-dsz0-2",
        *("Instruments_mimionerec", "cb256", "eval-da7c8416cc8355eeffbe"),
    ),
    (
        "Industrial_and_Scientific-qwen2.5-3b-instruct-grpo",
        *("Industrial_and_Scientific", "none", "eval-9441a82a2b6eb043184e"),
    ),
    (
        "Industrial_and_Scientific-sft-dsz0-4gpu-eq8",
        *("Industrial_and_Scientific", "none", "eval-c0ada1e63f43880d887f"),
    ),
    (
        "Instruments-grec-grpo-qwen2.5-3b-qwen4B-4-256-from-sft495",
        *("Instruments_grec_grpo", "cb256", "eval-41ef0e0d36ebb0337a5c"),
    ),
    (
        "Games-grec-grpo-rule-only-fixedhint-taskfix-b16-sft896",
        *("Games_grec", "none", "eval-e18e0890f3902debd4e9"),
    ),
    (
        "Instruments-grec-grpo-rule-only-fixedhint-taskfix-b16-sid-only-sft495-backup",
        *("Instruments_grec", "none", "eval-a10a093b50d0c02890b4"),
    ),
]


@pytest.mark.parametrize(("model_dir", "dataset", "cb_setting", "run_id"), KNOWN)
def test_the_data_set_is_inferred_as_known_manifests_have_it(model_dir, dataset, cb_setting, run_id):
    assert infer_dataset(model_dir) == dataset


@pytest.mark.parametrize(("model_dir", "dataset", "cb_setting", "run_id"), KNOWN)
def test_the_codebook_setting_is_inferred_as_known_manifests_have_it(model_dir, dataset, cb_setting, run_id):
    assert infer_cb_setting(model_dir) == cb_setting


@pytest.mark.parametrize(("model_dir", "dataset", "cb_setting", "run_id"), KNOWN)
def test_the_run_id_is_the_one_that_the_points_are_already_in(model_dir, dataset, cb_setting, run_id):
    assert "eval-" + run_key(model_dir, dataset, cb_setting, "test") == run_id


@pytest.mark.skipif(not REAL_MANIFEST.exists(), reason="the real manifest is not beside the repository")
def test_a_whole_real_manifest_comes_out_of_its_names():
    models = json.loads(REAL_MANIFEST.read_text(encoding="utf-8"))["models"]
    assert models
    inferred = []
    for model in models:
        name = model["model_dir"]
        dataset, cb_setting = infer_dataset(name), infer_cb_setting(name)
        run_id = "eval-" + run_key(name, dataset, cb_setting, model["eval_split"])
        inferred.append((name, dataset, cb_setting, run_id))
    keys = ("model_dir", "dataset", "cb_setting", "wandb_run_id")
    assert inferred == [tuple(model[key] for key in keys) for model in models]


def test_markers_are_tried_in_their_order_and_not_by_their_place():
    assert infer_dataset("Toys-rl-x-sft-y") == "Toys_rl_x"


def test_a_name_without_a_marker_is_the_data_set_itself():
    assert infer_dataset("Musical-Instruments") == "Musical_Instruments"


def test_a_name_that_begins_with_a_marker_is_not_the_empty_data_set():
    assert infer_dataset("-sft-model") == "_sft_model"


@pytest.mark.parametrize(
    ("model_dir", "cb_setting"),
    [
        ("Toys-cb64-128-256-sft", "cb64-128-256"),
        ("Toys-cb512-sft-qwen4B-4-256-dsz0", "cb512"),
        ("Toys-sft-4-256", "none"),
        ("Toys-sft-3-256-dsz0", "none"),
    ],
)
def test_a_codebook_in_the_name_comes_before_levels_and_size(model_dir, cb_setting):
    assert infer_cb_setting(model_dir) == cb_setting


def test_the_run_key_is_the_same_for_names_beyond_ascii_on_every_machine():
    assert run_key("模型", "数据", "none", "test") == "f07af8faef8937549dbd"


def test_every_part_of_the_key_matters():
    base = ("model", "data", "cb64", "test")
    keys = {run_key(*base[:place], "other", *base[place + 1 :]) for place in range(4)} | {run_key(*base)}
    assert len(keys) == 5


@pytest.mark.parametrize(
    ("path", "dataset"),
    [
        ("/x/data/Instruments_grec/sft/test.json", "Instruments_grec"),
        ("data/Instruments_grec/sft/valid.json", "Instruments_grec"),
        ("/x/data/Instruments_grec/test.json", "category"),
        ("test.json", "category"),
        ("sft/test.json", "category"),
    ],
)
def test_the_test_datas_path_tells_the_data_set_where_it_has_the_usual_form(path, dataset):
    assert dataset_of_test_data(Path(path), "category") == dataset


def test_making_it_again_keeps_what_overrides_chose(tmp_path):
    (tmp_path / "results" / "Games-sft-4-256-x" / "checkpoint-1").mkdir(parents=True)
    output = tmp_path / "manifest.json"
    overrides = tmp_path / "overrides.json"
    chosen = {"wandb_run_id": "mine", "seed": 7, "num_train_epochs": 3, "wandb_group": "g"}
    overrides.write_text(json.dumps({"Games-sft-4-256-x": chosen}))
    write_manifest(tmp_path / "results", output, overrides=overrides)
    before = output.read_bytes()
    write_manifest(tmp_path / "results", output)
    assert output.read_bytes() == before
    (model,) = load_manifest(output)
    assert (model.run_id, model.seed, model.num_train_epochs, model.group) == ("mine", 7, 3.0, "g")


def test_what_somebody_asks_for_holds_for_models_that_are_there_already(tmp_path):
    (tmp_path / "results" / "Games-sft-4-256-x" / "checkpoint-1").mkdir(parents=True)
    output = tmp_path / "manifest.json"
    write_manifest(tmp_path / "results", output)
    (first,) = load_manifest(output)
    asked = Defaults(project="other", eval_split="valid", chosen=frozenset({"project", "eval_split"}))
    write_manifest(tmp_path / "results", output, defaults=asked)
    (second,) = load_manifest(output)
    assert (second.project, second.eval_split) == ("other", "valid")
    assert second.run_id != first.run_id and second.run_id.startswith("eval-")


@pytest.mark.parametrize("name", ["empty", "__MACOSX", "lost+found", "@eaDir", ".hidden", "notes"])
def test_a_folder_without_a_checkpoint_is_no_model(tmp_path, name):
    results = tmp_path / "results"
    (results / "Games-sft-x" / "checkpoint-1").mkdir(parents=True)
    (results / name).mkdir()
    inside = {"notes": "readme.txt", "__MACOSX": "checkpoint-1", "@eaDir": "checkpoint-1"}.get(name)
    if inside:
        (results / name / inside).mkdir()
    output = tmp_path / "manifest.json"
    write_manifest(results, output)
    assert [model.model_dir for model in load_manifest(output)] == ["Games-sft-x"]


def test_a_model_that_the_manifest_has_already_stays_when_its_folder_is_empty(tmp_path):
    (tmp_path / "results" / "Games-sft-x" / "checkpoint-1").mkdir(parents=True)
    output = tmp_path / "manifest.json"
    write_manifest(tmp_path / "results", output)
    (tmp_path / "results" / "Games-sft-x" / "checkpoint-1").rmdir()
    write_manifest(tmp_path / "results", output)
    assert [model.model_dir for model in load_manifest(output)] == ["Games-sft-x"]
