"""One flat configuration: flags over a YAML file over the data set's preset over defaults."""

from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from math import isfinite
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_type_hints

import yaml

from fmcefast.convergence.parameters import SMOOTHINGS, check_parameters
from fmcefast.data.spec import DataSpec
from fmcefast.errors import InputError, unknown_name

# The stages of a run, in order. Changing a value undoes the stage it belongs to and all later ones.
STAGES = ("train", "markers", "extract", "fit", "report")


def _value(default: Any, stage: str, help: str, *, free: bool = False, **limits: Any) -> Any:
    """A setting of `stage`; a `free` one says where or how, not what, and may change at any time."""
    return field(default=default, metadata={"stage": stage, "help": help, "free": free, **limits})


@dataclass(frozen=True)
class Config:
    """What a run is made from."""

    data: str = _value(
        "digits",
        "train",
        "Data set: digits, mnist, fashion-mnist, cifar10, cifar100, mini-imagenet or folder:PATH.",
    )
    data_root: str = _value(
        "data", "train", "Folder that holds the data sets, in torchvision's layout, or mini-imagenet/.", free=True
    )
    subset: int | None = _value(
        None, "train", "Use N training images, and as large a part of the test set.", at_least=1
    )
    image_size: int = _value(224, "train", "Width and height of the images, in pixels.", at_least=32)
    recipe: str | None = _value(
        None,
        "train",
        "Normalise and augment the images as those of another data set.",
        choices=("digits", "mnist", "fashion-mnist", "cifar10", "cifar100", "mini-imagenet"),
    )
    backbone: str = _value("shufflenet_v2_x1_0", "train", "A torchvision classification model, or timm:NAME.")
    epochs: int = _value(100, "train", "Epochs of the cosine schedule.", at_least=1)
    until_converged: bool = _value(
        False,
        "train",
        "Stop training at the first epoch whose CQI is at most mu, instead of after the last.",
        free=True,
    )
    batch_size: int = _value(256, "train", "Images in a batch.", at_least=2)
    lr: float = _value(1e-3, "train", "Adam's learning rate at the start.", above=0.0)
    amp: str = _value("auto", "train", "Precision of backbone and FMCE-Net.", choices=("auto", "bf16", "fp16", "off"))
    seed: int = _value(0, "train", "Seed of weights, order and augmentation.", at_least=0, at_most=2**32 - 1)
    loader: str = _value(
        "auto",
        "train",
        "Who makes batches: pixels in (GPU) memory, DALI or torchvision from files.",
        free=True,
        choices=("auto", "dali", "resident", "torchvision"),
    )
    on_bad_image: str = _value(
        "fail",
        "train",
        "Image files that cannot be decoded: stop at one, or look for them first and leave them out.",
        choices=("fail", "skip"),
    )
    compile: bool = _value(False, "train", "Compile the backbone for training with torch.compile.", free=True)
    keep: str = _value(
        "all", "markers", "Weights to keep once there are markers.", free=True, choices=("all", "markers")
    )
    workers: int | None = _value(
        None, "train", "Threads that load images; one for each core if left out.", free=True, at_least=1
    )

    phases: int = _value(10, "markers", "K, the number of convergence phases.", at_least=2)
    mu: float = _value(1e-4, "markers", "The loss has converged when the CQI is at most this.", above=0.0)
    alpha: float = _value(0.85, "markers", "Weight of the past in the smoothed loss.", above=0.0)
    window: int = _value(5, "markers", "Epochs in the moving average of the CQI.", at_least=1)
    start: int = _value(1, "markers", "The first epoch that may count as converged.", at_least=1)
    smoothing: str = _value("ema", "markers", "The recursion, or the paper's formula as printed.", choices=SMOOTHINGS)

    dtype: str = _value("float16", "extract", "Stored feature maps.", choices=("float16", "float32"))
    strict: bool = _value(False, "extract", "Stop at feature maps with NaN or infinite values.", free=True)
    row_checksums: bool = _value(False, "extract", "Store the checksum of every feature map as well.")

    store: str = _value(
        "auto",
        "fit",
        "Where FMCE-Net's maps come from: the feature store on disk, all in (GPU) memory, or made again from the "
        "backbones.",
        free=True,
        choices=("auto", "disk", "memory", "recompute"),
    )
    split: str = _value("image", "fit", "3:1 by image (no image on both sides) or by map.", choices=("image", "map"))
    fmce_epochs: int = _value(10, "fit", "Epochs of FMCE-Net.", at_least=1)
    fmce_batch_size: int = _value(128, "fit", "Feature maps in a batch of FMCE-Net.", at_least=1)
    fmce_lr: float = _value(5e-4, "fit", "Adam's learning rate for FMCE-Net.", above=0.0)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def differences(self, other: "Config") -> dict[str, tuple[Any, Any]]:
        """{name: (own value, other value)} of the fields in which two configurations differ."""
        mine, theirs = self.as_dict(), other.as_dict()
        return {name: (mine[name], theirs[name]) for name in mine if mine[name] != theirs[name]}


FIELDS: dict[str, Field] = {each.name: each for each in fields(Config)}

# The data of a run whose images and training loop are its owner's.
RECORDED = "recorded"

# What a data set changes in the defaults: epochs and mu of [FMCE] Table I; digits are sized for two CPU cores, their
# batches so that the first epoch has steps enough for the batch statistics to settle.
PRESETS: dict[str, dict[str, Any]] = {
    "digits": {
        "backbone": "shufflenet_v2_x0_5",
        "image_size": 64,
        "epochs": 80,
        "until_converged": True,
        "batch_size": 32,
        "mu": 2e-2,
        "fmce_epochs": 5,
    },
    "mnist": {"epochs": 100},
    "fashion-mnist": {"epochs": 100},
    "cifar10": {"epochs": 150},
    "cifar100": {"epochs": 150, "mu": 1e-3},
    "mini-imagenet": {"epochs": 150, "mu": 1e-3},
    "folder": {"epochs": 150, "mu": 1e-3},
}


def resolve(*layers: Mapping[str, Any]) -> Config:
    """A configuration from layers, the strongest first, over the preset of the data set and the defaults.

    Raises InputError on an unknown key (with the nearest known one) or a value out of range.
    """
    given: dict[str, Any] = {}
    for layer in reversed(layers):
        given.update({check_name(name): value for name, value in layer.items()})
    data = str(given.get("data", FIELDS["data"].default))
    spec = DataSpec.parse(data)
    if data != RECORDED and (spec.name not in PRESETS or (spec.path is not None) != (spec.name == "folder")):
        raise unknown_name("data set", data, [*PRESETS.keys() - {"folder"}, "folder:PATH"])
    # Where a path leads must not depend on where the next command starts.
    preset = {"data_root": FIELDS["data_root"].default, **PRESETS.get(spec.name, {})}
    config = Config(**{name: check_value(name, value) for name, value in {**preset, **given}.items()})
    check_parameters(alpha=config.alpha, smoothing=config.smoothing)
    return config


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file; the names are checked by `resolve`."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"Cannot read the configuration {path}: {' '.join(str(error).split())}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InputError(f"The configuration {path} must hold `name: value` lines, not {type(content).__name__}.")
    return content


def to_yaml(config: Config) -> str:
    return yaml.safe_dump(config.as_dict(), sort_keys=False)


def check_name(name: Any) -> str:
    name = str(name).replace("-", "_")
    if name not in FIELDS:
        raise unknown_name("setting", name, FIELDS)
    return name


def field_type(name: str) -> type:
    """The type of a value that is given: of `int | None` it is int."""
    hint = get_type_hints(Config)[name]
    return get_args(hint)[0] if isinstance(hint, UnionType) else hint


def check_value(name: str, value: Any) -> Any:
    """`value` in the type of the field `name`, or InputError."""
    spec, kind, flag = FIELDS[name].metadata, field_type(name), "--" + name.replace("_", "-")
    if value is None and FIELDS[name].default is None:
        return None
    if value is False and "off" in spec.get("choices", ()):
        value = "off"  # which YAML reads as false
    try:
        # YAML reads 1e-4 as a string; True is an int to Python but not to people.
        if value is None:
            converted = MISSING
        elif kind is bool or isinstance(value, bool):
            converted = value if kind is bool and isinstance(value, bool) else MISSING
        else:
            converted = kind(value)
            if kind is int and converted != float(value):
                converted = MISSING
        if isinstance(converted, float) and not isfinite(converted):
            converted = MISSING
    except (TypeError, ValueError, OverflowError):
        converted = MISSING
    if converted is MISSING:
        raise InputError(f"{flag} takes {kind.__name__} values, not {value!r}.")
    if "choices" in spec and converted not in spec["choices"]:
        raise unknown_name(f"value of {flag}", converted, spec["choices"])
    if "at_least" in spec and converted < spec["at_least"]:
        raise InputError(f"{flag} must be at least {spec['at_least']}, not {converted}.")
    if "at_most" in spec and converted > spec["at_most"]:
        raise InputError(f"{flag} must be at most {spec['at_most']}, not {converted}.")
    if "above" in spec and not converted > spec["above"]:
        raise InputError(f"{flag} must be greater than {spec['above']:g}, not {converted}.")
    if name == "data_root":
        return _whole_path(converted)
    if name == "data" and (path := DataSpec.parse(converted).path) is not None:
        return str(DataSpec("folder", Path(_whole_path(path))))
    return converted


def _whole_path(path: str | Path) -> str:
    return str(Path(path).expanduser().resolve())
