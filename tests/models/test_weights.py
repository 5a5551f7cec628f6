"""Weights as people have them: safetensors, state_dicts, checkpoints of other tools, and what must not be read."""

import pytest
import torch
from safetensors.torch import save_file

from fmcefast.errors import InputError
from fmcefast.models.backbones import make_backbone
from fmcefast.models.networks import make_network
from fmcefast.models.weights import read_weights

NAME = "shufflenet_v2_x0_5"


@pytest.fixture
def network():
    torch.manual_seed(3)
    return make_network(NAME, 10).eval()


def logits_after(backbone):
    torch.manual_seed(0)
    with torch.inference_mode():
        return backbone.eval()(torch.randn(2, 3, 64, 64))


def as_saved(state):
    """The same weights in the ways that training scripts save them."""
    return {
        "plain": state,
        "ddp": {f"module.{name}": tensor for name, tensor in state.items()},
        "compiled": {"model": {f"_orig_mod.{name}": tensor for name, tensor in state.items()}, "epoch": 3},
        "lightning": {"state_dict": {f"model.{name}": tensor for name, tensor in state.items()}, "global_step": 7},
        "timm": {"state_dict": state, "arch": NAME, "metric": 0.5},
        "half": {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()},
        "old": {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")},
    }


@pytest.mark.parametrize("way", as_saved({}))
def test_a_checkpoint_is_read_however_it_was_saved(tmp_path, network, way):
    expected = logits_after(network)
    torch.save(as_saved(network.state_dict())[way], tmp_path / "w.pt")
    backbone = make_backbone(NAME, 10)
    backbone.load(tmp_path / "w.pt")
    tolerance = 2e-2 if way == "half" else 1e-5
    torch.testing.assert_close(logits_after(backbone), expected, rtol=tolerance, atol=tolerance)


def test_the_format_is_told_by_content_not_by_name(tmp_path, network):
    save_file(network.state_dict(), tmp_path / "w.pth")
    torch.save(network.state_dict(), tmp_path / "w.safetensors", _use_new_zipfile_serialization=False)
    for name in ("w.pth", "w.safetensors"):
        found = read_weights(tmp_path / name)
        assert all(torch.equal(tensor, found[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("start", [b"\x80", b"P"])
def test_safetensors_may_begin_with_any_byte(tmp_path, start):
    path = tmp_path / "weights.safetensors"
    for length in range(1, 400):  # of the header, which is what the file begins with
        save_file({"w" * length: torch.ones(2)}, path)
        if path.read_bytes()[:1] == start:
            break
    assert path.read_bytes().startswith(start)
    assert torch.equal(read_weights(path)["w" * length], torch.ones(2))


class Evil:
    def __reduce__(self):
        return exec, ("raise SystemExit('code from a file was run')",)


@pytest.mark.parametrize(
    "content", [Evil(), {"model": Evil()}, torch.nn.Linear(2, 2)], ids=["object", "inside", "module"]
)
def test_python_objects_are_refused_and_not_run(tmp_path, content):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"any code.*safetensors.torch.save_file\(model.state_dict"):
        read_weights(tmp_path / "w.pt")


def test_what_holds_no_weights_is_refused(tmp_path):
    torch.save({"epoch": 3, "lr": 0.1}, tmp_path / "w.pt")
    with pytest.raises(InputError, match="holds no state_dict"):
        read_weights(tmp_path / "w.pt")
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    with pytest.raises(InputError, match="holds no state_dict"):
        read_weights(tmp_path / "list.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "w.pt").read_bytes()[:300])
    for name in ("cut.pt", "absent.pt"):
        with pytest.raises(InputError, match=r"damaged|no weights at"):
            read_weights(tmp_path / name)


def test_one_network_of_a_file_is_read_and_several_are_refused(tmp_path, network):
    state, backbone = network.state_dict(), make_backbone(NAME, 10)
    student = {f"student.{name}": tensor for name, tensor in state.items()}
    backbone.take({**student, "criterion.weight": torch.zeros(3), "teacher.fc.weight": torch.zeros(2)}, tmp_path)
    torch.testing.assert_close(logits_after(backbone), logits_after(network))
    both = {**student, **{f"teacher.{name}": tensor for name, tensor in state.items()}}
    with pytest.raises(InputError, match=r"several such networks \(student\., teacher\.\)"):
        backbone.take(both, tmp_path)
    whole_numbers = {**state, "fc.weight": state["fc.weight"].to(torch.int8)}
    with pytest.raises(InputError, match=r"of another shape or type: fc\.weight"):
        backbone.take(whole_numbers, tmp_path)
    torch.save({"model": {"state_dict": student}}, tmp_path / "nested.pt")
    assert read_weights(tmp_path / "nested.pt").keys() == student.keys()


def test_another_classifier_is_left_out_and_another_network_refused(tmp_path, network):
    torch.save(make_network(NAME, 4).state_dict(), tmp_path / "four.pt")
    backbone = make_backbone(NAME, 10)
    fresh = backbone.head.fc.weight.clone()
    assert backbone.take_features(read_weights(tmp_path / "four.pt"), tmp_path / "four.pt") is False
    assert torch.equal(backbone.head.fc.weight, fresh)
    assert backbone.take_features(network.state_dict(), tmp_path / "ten.pt") is True
    torch.testing.assert_close(logits_after(backbone), logits_after(network))
    with pytest.raises(InputError, match=r"another network \(of another shape or type: fc.weight, fc.bias\)"):
        backbone.load(tmp_path / "four.pt")
    wide = make_network("shufflenet_v2_x1_0", 10).state_dict()
    with pytest.raises(InputError, match="of another shape or type"):
        backbone.take_features(wide, tmp_path / "wide.pt")
    # A deeper network of the same kind holds every tensor of a shallower one.
    shallow = make_backbone("resnet18", 10)
    with pytest.raises(InputError, match=r"not part of this one: layer1\.2"):
        shallow.take_features(make_network("resnet34", 10).state_dict(), tmp_path / "deep.pt")
