"""GPUs as a user names them, and whether they are there."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval_sidecar.errors import UsageError
from eval_sidecar.system.gpus import Gpu, describe_missing, device_variables, list_gpus, parse_devices

UUID = "GPU-7c1c8a2e-1111-2222-3333-444455556666"
MIG = "MIG-0a1b2c3d-1111-2222-3333-444455556666"
SMI = f"""GPU 0: NVIDIA H100 80GB HBM3 (UUID: {UUID})
  MIG 1g.10gb     Device  0: (UUID: {MIG})
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-2)
"""
TWO = [Gpu(UUID, 0, "NVIDIA H100 80GB HBM3"), Gpu(MIG), Gpu("GPU-2", 1, "NVIDIA H100 80GB HBM3")]


@pytest.fixture(autouse=True)
def _all_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Puts an nvidia-smi on the PATH that prints this and ends with this code."""

    def put(printed: str, code: int = 0) -> None:
        path = tmp_path / "nvidia-smi"
        path.write_text(f"#!/bin/sh\ncat <<'END'\n{printed}END\nexit {code}\n")
        path.chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return put


# -- what is named ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cuda_list", "devices"),
    [
        ("0", ("0",)),
        ("0 1", ("0", "1")),
        ("0,1", ("0", "1")),
        ("0-3", ("0", "1", "2", "3")),
        ("0-1, 4", ("0", "1", "4")),
        ("cuda:0", ("0",)),
        ("cuda:1 cuda:0", ("1", "0")),
        ("all", ("0", "1")),
        (UUID, (UUID,)),
        (f"{MIG},{UUID}", (MIG, UUID)),
        ("cpu cpu", ("cpu", "cpu")),
        ("npu:0", ("npu:0",)),
        ("", ()),
    ],
)
def test_a_list_of_gpus_is_understood_as_people_write_it(cuda_list, devices):
    assert parse_devices(cuda_list, lambda: TWO) == devices


def test_all_are_those_that_programs_see(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,7")
    assert parse_devices("all", lambda: TWO) == ("0", "1", "2")


def test_all_is_one_where_nobody_knows_how_many_there_are():
    assert parse_devices("all", lambda: None) == ("0",)


@pytest.mark.parametrize(
    ("cuda_list", "said"), [("3-0", "did you mean 0-3"), (f"0 {UUID}", "either numbers or UUIDs")]
)
def test_a_list_that_cannot_be_meant_is_a_usage_error(cuda_list, said):
    with pytest.raises(UsageError, match=said):
        parse_devices(cuda_list, lambda: TWO)


def test_uuids_reach_a_job_as_what_it_sees_and_numbers_do_not_change_that():
    assert device_variables(f"{UUID} {MIG}") == {
        "CUDA_LIST": f"{UUID} {MIG}",
        "CUDA_VISIBLE_DEVICES": f"{UUID},{MIG}",
    }
    assert device_variables("0 1") == {"CUDA_LIST": "0 1"}


# -- what is there ---------------------------------------------------------------------------------------


def test_the_driver_shows_gpus_and_their_parts(smi):
    smi(SMI)
    assert list_gpus() == TWO


@pytest.mark.parametrize(("printed", "code"), [("No devices were found\n", 6), ("", 0)])
def test_a_driver_without_gpus_shows_none(smi, printed, code):
    smi(printed, code)
    assert list_gpus() == []


def test_without_a_driver_that_answers_nothing_is_known(smi):
    assert list_gpus() is None
    smi("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n", 9)
    assert list_gpus() is None


@pytest.mark.parametrize(
    ("devices", "gpus", "said"),
    [
        (["0", "1"], TWO, None),
        (["0", "2", "5"], TWO, "--cuda-list 0 2 5: GPU 2, 5 not found (nvidia-smi shows 2: 0, 1)"),
        (["0"], [], "nvidia-smi shows no GPU"),
        (["0"], None, None),
        (["cpu"], [], None),
        ([UUID, MIG], TWO, None),
        (["GPU-9"], TWO, "GPU GPU-9 not found"),
        (["npu:0"], TWO, None),
    ],
)
def test_gpus_that_are_not_there_are_named_and_no_others(devices, gpus, said):
    found = describe_missing(devices, gpus)
    assert found == said or (said and found and said in found)


@pytest.mark.parametrize(
    ("visible", "devices", "is_there"),
    [("1", ["0"], True), ("1", ["1"], True), ("0", ["1"], False), ("", ["0"], False), ("-1", ["0"], False)],
)
def test_a_number_counts_among_the_visible_ones_or_is_one_of_them(visible, devices, is_there, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = describe_missing(devices, TWO)
    assert found is None if is_there else f"CUDA_VISIBLE_DEVICES={visible} leaves" in (found or "")
