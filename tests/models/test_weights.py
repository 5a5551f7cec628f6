"""Weights as people have them, under whatever names, and the choice where a file holds several sets."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fmcefast.errors import InputError
from fmcefast.models.backbones import make_backbone
from fmcefast.models.networks import make_network
from fmcefast.models.weights import Choice, WeightsFile, copy_weights, read_weights

NAME = "shufflenet_v2_x0_5"


class Small(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 3), nn.BatchNorm2d(width)
        self.layer1 = nn.Sequential(nn.Conv2d(width, width, 1), nn.BatchNorm2d(width))
        self.fc = nn.Linear(width, 2)


@pytest.fixture
def states():
    """Two sets of weights of the small network."""
    torch.manual_seed(3)
    return [Small().state_dict() for _ in range(2)]


@pytest.fixture
def loads(tmp_path):
    """(content of w.pt, key) -> the weights of a small network that has read the file, and the choice."""

    def load(content, key=None):
        torch.save(content, tmp_path / "w.pt")
        network = Small()
        own = network.state_dict()
        found = WeightsFile(tmp_path / "w.pt", key).find(own)
        copy_weights(network, found, {name: name for name in own})
        return network.state_dict(), found.choice

    return load


def same(found, state):
    return all(torch.equal(found[name], tensor) for name, tensor in state.items())


def under(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


# As training scripts save them, and the key of the weights.
WAYS = {
    "plain": (lambda state: state, ""),
    "ddp": (lambda state: under("module.", state), "module"),
    "compiled": (lambda state: {"model": under("_orig_mod.", state), "epoch": 3}, "model._orig_mod"),
    "compiled ddp": (lambda state: {"model": under("module._orig_mod.", state)}, "model.module._orig_mod"),
    "lightning": (lambda state: {"state_dict": under("model.", state), "global_step": 7}, "state_dict.model"),
    "timm": (lambda state: {"state_dict": state, "arch": NAME, "metric": 0.5, "version": 2}, "state_dict"),
    "torchvision": (lambda state: {"model": state, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}}, "model"),
    "deepspeed": (lambda state: {"module": state, "ds_config": {}}, "module"),
    "teacher": (lambda state: {"teacher": under("module.backbone.", state), "epoch": 1}, "teacher.module.backbone"),
    "ema": (lambda state: {"state_dict_ema": state}, "state_dict_ema"),
    "by name": (lambda state: {"model_state_dict": state, "loss": torch.ones(())}, "model_state_dict"),
    "net": (lambda state: {"net": state, "acc": 95.0, "epoch": 3}, "net"),
    "two levels": (lambda state: {"checkpoint": {"weights": under("encoder.", state)}}, "checkpoint.weights.encoder"),
    "three levels": (lambda state: {"a": {"b": {"state_dict": state}}}, "a.b.state_dict"),
    "moments by name": (lambda state: {"model": state, "optim": {"exp_avg": state}}, "model"),
    "beside others": (lambda state: {**under("student.", state), "criterion.weight": torch.zeros(3)}, "student"),
    "old": (
        lambda state: {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")},
        "",
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_weights_are_found_however_they_were_saved(loads, states, way):
    saved, key = WAYS[way]
    found, choice = loads(saved(states[0]))
    expected = {name: tensor for name, tensor in states[0].items() if way != "old" or "num_batches" not in name}
    assert same(found, expected) and choice == Choice(key, []) and choice.explain("w.pt") == []
    assert same(loads(saved(states[0]), key)[0], expected)


def test_weights_of_half_precision(loads, states):
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in states[0].items()}
    eighth = {name: tensor.to(torch.float8_e5m2) if tensor.ndim == 4 else tensor for name, tensor in half.items()}
    counts_too = {name: tensor.half() for name, tensor in states[0].items()}
    for state in (half, eighth, counts_too):
        found, _ = loads(state)
        assert same(found, {name: tensor.to(found[name].dtype) for name, tensor in state.items()})


# Two sets of weights: the first one is taken, and what it is called; then what the other is called.
SEVERAL = {
    "timm": (lambda a, b: {"state_dict": b, "state_dict_ema": a}, "state_dict_ema", "state_dict"),
    "torchvision": (
        lambda a, b: {"model": b, "model_ema": {"n_averaged": torch.ones(()), **under("module.", a)}},
        "model_ema.module",
        "model",
    ),
    "dino": (
        lambda a, b: {"student": under("module.backbone.", b), "teacher": under("backbone.", a)},
        "teacher.backbone",
        "student.module.backbone",
    ),
    "one dictionary": (
        lambda a, b: {"state_dict": {**under("model.", b), **under("ema_model.", a)}},
        "state_dict.ema_model",
        "state_dict.model",
    ),
    "within": (lambda a, b: {**b, "ema": a}, "ema", ""),
    "best": (lambda a, b: {"state_dict": a, "best_so_far": b}, "state_dict", "best_so_far"),
    "lightning": (lambda a, b: {"current_model_state": b, "state_dict": a}, "state_dict", "current_model_state"),
}


@pytest.mark.parametrize("kind", SEVERAL)
def test_of_several_sets_the_average_is_taken_and_the_key_takes_another(loads, states, kind):
    saved, taken, other = SEVERAL[kind]
    content = saved(*states)
    found, choice = loads(content)
    assert same(found, states[0]) and choice == Choice(taken, [other])
    (line,) = choice.explain("w.pt")
    shown = other or "''"
    assert line == f"w.pt: {taken} was taken. {shown} would fit too: `key={shown}`"
    found, choice = loads(content, other)
    assert same(found, states[1]) and choice == Choice(other, [taken])
    assert same(loads(content, taken.partition(".")[0])[0], states[0]) or kind == "one dictionary"


def test_where_nothing_tells_them_apart_it_is_asked(loads, states):
    both = {**under("encoder_q.", states[0]), **under("encoder_k.", states[1])}
    with pytest.raises(InputError, match=r"several such networks: encoder_q, encoder_k\. Take one: `key=encoder_q`"):
        loads(both)
    assert same(loads(both, "encoder_k")[0], states[1])


def test_a_teacher_of_another_width_is_not_in_question(loads, states):
    teacher = Small(8).state_dict()
    found, choice = loads({"teacher": teacher, "student": states[0]})
    assert same(found, states[0]) and choice == Choice("student", [])
    with pytest.raises(InputError, match="of another shape or type"):
        loads({"teacher": teacher, "student": states[0]}, "teacher")


def test_one_shard_alone(tmp_path, states):
    path = tmp_path / "model-00002-of-00005.safetensors"
    save_file({"bn1.weight": torch.ones(4)}, path)
    with pytest.raises(InputError, match=r"00005\.safetensors is one of several shards\. Name .*, \*\.index\.json"):
        WeightsFile(path).find(states[0])


def test_a_key_that_is_not_there(loads, states):
    content = {"state_dict": states[0], "epoch": 3, "other": {"x": torch.ones(2)}}
    for key in ("state_dic", "State_dict", "state_dict_ema"):
        with pytest.raises(InputError, match=rf"Unknown key of .*w\.pt '{key}'\. Did you mean 'state_dict'\?"):
            loads(content, key)
    with pytest.raises(InputError, match=r"Unknown key of .* 'ema'\. Known: other, state_dict\."):
        loads(content, "ema")
    with pytest.raises(InputError, match=r"are of another network \(missing: conv1\.weight, "):
        loads(content, "other")
    with pytest.raises(InputError, match=r"missing: conv1\.weight, .*, \.\.\.; what is there: x\)"):
        loads({"x": torch.ones(2)})
    with pytest.raises(InputError, match=r"are of another network \(missing: "):
        loads(content, "")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_named(loads, states, value):
    broken = {name: tensor.clone() for name, tensor in states[0].items()}
    for name in ("conv1.weight", "bn1.running_var", "fc.bias", "layer1.0.weight"):
        broken[name].view(-1)[-1] = value
    message = r"w\.pt hold values that are not finite: conv1\.weight, bn1\.running_var, layer1\.0\.weight, \.\.\."
    with pytest.raises(InputError, match=message):
        loads(broken)


def test_infinite_values_that_belong_to_the_network_are_not_refused(tmp_path):
    """The mask of causal attention, say."""
    from fmcefast.recorder.state import as_safetensors, load_recorded

    network = torch.nn.Linear(2, 2)
    network.register_buffer("mask", torch.tensor([0.0, float("-inf")]))
    path = tmp_path / "w.safetensors"
    path.write_bytes(as_safetensors(network.state_dict()))
    load_recorded(network, path)
    path.write_bytes(as_safetensors({**network.state_dict(), "mask": torch.tensor([float("-inf"), 0.0])}))
    with pytest.raises(InputError, match="not finite: mask"):
        load_recorded(network, path)


def test_names_are_shown_without_what_a_terminal_would_obey(loads, states):
    with pytest.raises(InputError, match=r"not part of this one: \\x1b\[2Jx"):
        loads({**states[0], "\x1b[2Jx": torch.ones(1)})
    with pytest.raises(InputError, match=r"Known: \\x1b\[2J\."):
        loads({"\x1b[2J": {"x": torch.ones(1)}}, "model")


def test_all_tensors_of_a_file(tmp_path, states):
    save_file(states[0], tmp_path / "w.pth")
    torch.save(states[0], tmp_path / "w.safetensors", _use_new_zipfile_serialization=False)
    for name in ("w.pth", "w.safetensors"):  # the content counts, not the name
        found = read_weights(tmp_path / name)
        assert found.keys() == states[0].keys() and same(found, states[0])


def test_another_classifier_is_left_out_and_another_network_refused(tmp_path):
    def file(name, state):
        save_file(state, tmp_path / f"{name}.safetensors")
        return WeightsFile(tmp_path / f"{name}.safetensors")

    backbone = make_backbone(NAME, 10)
    fresh = backbone.head.fc.weight.clone()
    states = [make_network(NAME, 10).state_dict() for _ in range(2)]
    four = file("four", make_network(NAME, 4).state_dict())
    none = file("none", {name: tensor for name, tensor in states[1].items() if not name.startswith("fc.")})
    for other in (four, none):
        assert backbone.take_features(other) == (Choice("", []), False)
        assert torch.equal(backbone.head.fc.weight, fresh)
    assert torch.equal(backbone.state_dict()["features.conv1.0.weight"], states[1]["conv1.0.weight"])
    assert backbone.take_features(file("ten", states[0])) == (Choice("", []), True)
    assert torch.equal(backbone.head.fc.weight, states[0]["fc.weight"])
    with pytest.raises(InputError, match=r"another network \(of another shape or type: fc.weight, fc.bias\)"):
        backbone.take(four)
    with pytest.raises(InputError, match="of another shape or type"):
        backbone.take_features(file("wide", make_network("shufflenet_v2_x1_0", 10).state_dict()))
    with pytest.raises(InputError, match=r"of another shape or type: fc\.weight"):
        backbone.take(file("whole numbers", {**states[0], "fc.weight": states[0]["fc.weight"].to(torch.int8)}))
    with pytest.raises(InputError, match=r"not finite: fc\.bias\."):
        backbone.take_features(file("nan", {**states[0], "fc.bias": torch.full((10,), torch.nan)}))
    # A deeper network of the same kind holds every tensor of a shallower one.
    with pytest.raises(InputError, match=r"not part of this one: layer1\.2"):
        make_backbone("resnet18", 10).take_features(file("deep", make_network("resnet34", 10).state_dict()))
