"""A driver that torch cannot use is one line; a machine without GPUs computes on the CPU. The texts are CUDA's own."""

import pytest
import torch

from cotnet.commands.checks import machine_lines
from cotnet.config.compose import compose
from cotnet.engine.gpus import driver_problem, require_usable_gpus
from cotnet.engine.precision import choose_precision, is_channels_last
from cotnet.errors import InputError

OLD = "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver"
COUNT = (
    "Unexpected error from cudaGetDeviceCount(). Did you run some cuda functions before calling NumCudaDevices() that "
    "might have already set an error? "
)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            OLD,
            "the NVIDIA driver is too old: it knows CUDA 11.4, this torch needs CUDA 13.0; update the driver, install "
            "a torch for CUDA 11.4, or set CUDA_VISIBLE_DEVICES= to compute on the CPU",
        ),
        (
            f"{COUNT}Error 803: system has unsupported display driver / cuda driver combination",
            "the GPUs cannot be used (CUDA error 803: system has unsupported display driver / cuda driver "
            "combination); mend the driver, or set CUDA_VISIBLE_DEVICES= to compute on the CPU",
        ),
        (
            f"{COUNT}Error 802: system not yet initialized",
            "the GPUs cannot be used (CUDA error 802: system not yet initialized); mend the driver, or set "
            "CUDA_VISIBLE_DEVICES= to compute on the CPU",
        ),
        (f"{COUNT}Error 100: no CUDA-capable device is detected", None),
        (
            "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and installed a driver",
            None,
        ),
        ("No CUDA GPUs are available", None),
    ],
)
def test_what_is_wrong_with_the_driver(text, line):
    assert driver_problem(text, "13.0") == line


def test_a_driver_that_is_too_old_ends_a_run_unless_it_wants_the_cpu(monkeypatch):
    def refuse():
        raise RuntimeError(OLD)

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", refuse)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(InputError, match=r"^the NVIDIA driver is too old: it knows CUDA 11\.4"):
        require_usable_gpus()
    with pytest.raises(InputError, match=r"^the NVIDIA driver is too old"):
        next(machine_lines({}, None, 1))  # explain=true and the doctor
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    require_usable_gpus()


def test_a_machine_without_gpus_is_fine(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    require_usable_gpus()


@pytest.mark.parametrize("key", ["train.precision", "precision"])
def test_a_gpu_without_bf16(key, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 0))
    v100 = torch.device("cuda")
    with pytest.raises(
        InputError, match=rf"^{key}=bf16 needs a GPU of compute capability 8\.0 or newer; use {key}=fp16$"
    ):
        choose_precision("bf16", v100, key=key)
    assert choose_precision("auto", v100, key=key) == "fp16"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    assert choose_precision("auto", v100, key=key) == choose_precision("bf16", v100, key=key) == "bf16"


def test_channels_last_is_on_on_a_gpu_by_default():
    assert compose("train", ["data.root=x"])["train"]["channels_last"] == "auto"
    devices = torch.device("cuda"), torch.device("cpu")
    assert [is_channels_last("auto", device) for device in devices] == [True, False]
    for given in (True, False):
        assert [is_channels_last(given, device) for device in devices] == [given, given]
