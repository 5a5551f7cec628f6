"""Which device computes, and in which precision."""

import pytest
import torch

from fmcefast.errors import InputError
from fmcefast.models.backbones import make_backbone
from fmcefast.runtime.device import amp_type, pick_device


def test_precision_follows_the_device(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert amp_type("auto", cpu) is None
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert amp_type("auto", cpu) is torch.bfloat16 is amp_type("bf16", cpu)
    assert amp_type("auto", cpu, make_backbone("resnet18", 2)) is torch.bfloat16
    depthwise = make_backbone("shufflenet_v2_x0_5", 2)
    assert amp_type("auto", cpu, depthwise) is None and amp_type("bf16", cpu, depthwise) is torch.bfloat16
    assert amp_type("off", cpu) is None and amp_type("fp16", cuda) is torch.float16
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert amp_type("auto", cuda, depthwise) is torch.bfloat16
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert amp_type("auto", cuda) is torch.float16
    with pytest.raises(InputError, match="slower"):
        amp_type("fp16", cpu)


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert pick_device() == torch.device("cuda", 1) == chosen[0]
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(InputError, match=r"3 processes need a GPU each .* shows 2\. .*--nproc-per-node 2"):
        pick_device()
