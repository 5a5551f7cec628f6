import pytest
import yaml

from fmcefast.errors import InputError
from fmcefast.run.config import Config, read_yaml, resolve, to_yaml


def test_flags_win_over_the_file_over_the_preset_over_defaults():
    assert resolve({}).mu == 2e-2  # digits' preset
    assert resolve({"data": "mnist"}).mu == Config.mu
    assert resolve({"mu": 5e-3}, {"mu": 1, "seed": 3}) == resolve({"mu": 5e-3, "seed": 3})
    assert resolve({"data": "folder:a/b:c"}).epochs == 150


def test_yaml_keeps_every_value(tmp_path):
    config = resolve({"data": "cifar10", "mu": 1e-5, "subset": 500, "lr": 3e-4})
    (tmp_path / "c.yaml").write_text(to_yaml(config))
    assert resolve(read_yaml(tmp_path / "c.yaml")) == config


def test_yaml_numbers_as_people_write_them(tmp_path):
    (tmp_path / "c.yaml").write_text("mu: 1e-4\nbatch-size: 32\n")  # YAML 1.1 reads 1e-4 as text
    config = resolve(read_yaml(tmp_path / "c.yaml"))
    assert (config.mu, config.batch_size) == (1e-4, 32)


def test_off_is_a_word(tmp_path):
    (tmp_path / "c.yaml").write_text("amp: off\n")  # YAML 1.1 reads it as false
    assert resolve(read_yaml(tmp_path / "c.yaml")).amp == "off"


def test_paths_lead_to_the_same_place_from_everywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert resolve({}).data_root == str(tmp_path / "data")
    for given, whole in [("photos", f"{tmp_path}/photos"), ("~/photos", "/home/me/photos"), ("/a/b:c", "/a/b:c")]:
        config = resolve({"data": f"folder:{given}", "data_root": given})
        assert (config.data, config.data_root) == (f"folder:{whole}", whole)


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [", "!!python/object/apply:os.system ['true']", "just words"])
def test_unusable_yaml_is_refused(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(InputError, match=r"c\.yaml"):
        read_yaml(tmp_path / "c.yaml")


def test_an_empty_file_changes_nothing_and_a_missing_one_is_an_error(tmp_path):
    (tmp_path / "c.yaml").write_text("")
    assert read_yaml(tmp_path / "c.yaml") == {}
    with pytest.raises(InputError, match=r"none\.yaml"):
        read_yaml(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"epoch": 3}, "Did you mean 'epochs'"),
        ({"qqqq": 3}, "Known: alpha, amp"),
        ({"amp": "bf61"}, "Did you mean 'bf16'"),
        ({"epochs": 0}, "at least 1"),
        ({"epochs": 2.5}, "takes int values"),
        ({"epochs": "many"}, "takes int values, not 'many'"),
        ({"epochs": True}, "takes int values"),
        ({"epochs": None}, "takes int values"),
        ({"lr": -1}, "greater than 0"),
        ({"lr": float("nan")}, "takes float values"),
        ({"mu": float("inf")}, "takes float values"),
        ({"epochs": float("inf")}, "takes int values"),
        ({"alpha": 1.5}, "alpha must lie between 0 and 1"),
        ({"alpha": 1, "smoothing": "ema"}, "alpha must lie between 0 and 1"),
        ({"seed": 2**32}, "at most"),
        ({"data_root": None}, "takes str values, not None"),
        ({"amp": True}, "takes str values, not True"),
        ({"data": "minst"}, "Did you mean 'mnist'"),
        ({"data": "digits:x"}, "Unknown data set"),
        ({"data": "folder:"}, "folder:PATH"),
        ({"until_converged": "yes"}, "takes bool values"),
        ({"smoothing": "Ema "}, "Did you mean 'ema'"),
        ({"image_size": 8}, "at least 32"),
        ({"recipe": "mnits"}, "Did you mean 'mnist'"),
    ],
)
def test_bad_values_are_refused_with_a_hint(values, complaint):
    with pytest.raises(InputError, match=complaint):
        resolve(values)


def test_every_preset_resolves():
    from fmcefast.data.recipes import recipe_of
    from fmcefast.run.config import PRESETS, SETTINGS

    for name in PRESETS:
        data = "folder:/a/b" if name == "folder" else name
        config = resolve({"data": data})
        assert yaml.safe_load(to_yaml(config))["data"] == data
        assert recipe_of(name).mean
    for name in SETTINGS["recipe"].choices:
        assert recipe_of(resolve({"data": "folder:a", "recipe": name}).recipe) == recipe_of(name)
