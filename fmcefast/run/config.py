"""One flat configuration: flags over a YAML file over the data set's preset over defaults."""

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from math import isfinite
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_type_hints

import yaml

from fmcefast.convergence.parameters import MIN_DROP, SMOOTHINGS, check_parameters
from fmcefast.data.spec import DataSpec
from fmcefast.errors import InputError, unknown_name


@dataclass(frozen=True)
class Setting:
    """One setting: its name, type and default, the stage it belongs to, and the limits of its values.

    kind: the type of a value other than None. invalidates_results: whether a new value invalidates results (see
    Config.of_results); False for settings that only control where or how to compute.
    """

    name: str
    kind: type
    default: Any
    stage: str
    help: str
    invalidates_results: bool
    choices: tuple[str, ...] = ()
    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None


def _setting(default: Any, stage: str, help: str, *, invalidates_results: bool = True, **limits: Any) -> Any:
    facts = {"stage": stage, "help": help, "invalidates_results": invalidates_results, **limits}
    return field(default=default, metadata=facts)


@dataclass(frozen=True)
class Config:
    """The settings of a run."""

    data: str = _setting(
        "digits",
        "train",
        "Data set: digits, mnist, fashion-mnist, cifar10, cifar100, mini-imagenet or folder:PATH.",
    )
    data_root: str = _setting(
        "data",
        "train",
        "Folder that holds the data sets, in torchvision's layout, or mini-imagenet/.",
        invalidates_results=False,
    )
    subset: int | None = _setting(
        None, "train", "Use N training images, and the same fraction of the test set.", at_least=1
    )
    image_size: int = _setting(224, "train", "Width and height of the images, in pixels.", at_least=32)
    recipe: str | None = _setting(
        None,
        "train",
        "Normalise and augment the images as those of another data set.",
        choices=("digits", "mnist", "fashion-mnist", "cifar10", "cifar100", "mini-imagenet"),
    )
    backbone: str = _setting("shufflenet_v2_x1_0", "train", "A torchvision classification model, or timm:NAME.")
    epochs: int = _setting(100, "train", "Epochs of the cosine schedule.", at_least=1)
    until_converged: bool = _setting(
        False,
        "train",
        "Stop training as soon as the loss has converged, instead of after the last epoch.",
        invalidates_results=False,
    )
    batch_size: int = _setting(256, "train", "Images in a batch.", at_least=2)
    lr: float = _setting(1e-3, "train", "Adam's learning rate at the start.", above=0.0)
    amp: str = _setting("auto", "train", "Precision of backbone and FMCE-Net.", choices=("auto", "bf16", "fp16", "off"))
    seed: int = _setting(0, "train", "Seed of weights, order and augmentation.", at_least=0, at_most=2**32 - 1)
    loader: str = _setting(
        "auto",
        "train",
        "Image loader: resident decodes files once and keeps all pixels in (GPU) memory; dali, nvjpeg (on a GPU) and "
        "torchvision (threads) decode them in every epoch.",
        invalidates_results=False,
        choices=("auto", "dali", "nvjpeg", "resident", "torchvision"),
    )
    resident_size: int = _setting(
        256,
        "train",
        "Pixels of the shorter side to which the resident loader reduces larger image files.",
        at_least=32,
    )
    on_bad_image: str = _setting(
        "fail",
        "train",
        "Image files that cannot be decoded: fail at the first one, or find and skip them beforehand.",
        choices=("fail", "skip"),
    )
    exif: str = _setting(
        "ignore",
        "train",
        "Orientation in the EXIF data of image files: ignore it as torchvision does, or apply it and turn the images.",
        choices=("ignore", "apply"),
    )
    compile: bool = _setting(
        False, "train", "Compile the backbone for training with torch.compile.", invalidates_results=False
    )
    graphs: bool = _setting(
        True, "train", "Launch all work on a batch at once on a GPU, as a CUDA graph.", invalidates_results=False
    )
    keep: str = _setting(
        "all",
        "markers",
        "Epochs whose weights are kept once the markers are found.",
        invalidates_results=False,
        choices=("all", "markers"),
    )
    tensorboard: bool = _setting(
        False, "markers", "Keep the curves as TensorBoard events too, in RUN/tensorboard.", invalidates_results=False
    )
    workers: int | None = _setting(
        None, "train", "Threads that load images; one per core by default.", invalidates_results=False, at_least=1
    )

    phases: int = _setting(10, "markers", "K, the number of convergence phases.", at_least=2)
    mu: float = _setting(1e-4, "markers", "The loss has converged when the CQI is at most this.", above=0.0)
    alpha: float = _setting(0.85, "markers", "Weight of the past in the smoothed loss.", above=0.0)
    window: int = _setting(5, "markers", "Epochs in the moving average of the CQI.", at_least=1)
    start: int = _setting(1, "markers", "The first epoch that may count as converged.", at_least=1)
    min_drop: float = _setting(
        MIN_DROP,
        "markers",
        "The loss has converged only after a fall by this part since E_0, beyond its noise and at one time faster than "
        "mu; 0 asks for no fall.",
        at_least=0.0,
    )
    smoothing: str = _setting(
        "ema",
        "markers",
        "Loss smoothing: the recursion (ema), or the paper's formula as printed (literal).",
        choices=SMOOTHINGS,
    )

    dtype: str = _setting("float16", "extract", "Precision of the stored feature maps.", choices=("float16", "float32"))
    strict: bool = _setting(
        False, "extract", "Stop at feature maps with NaN or infinite values.", invalidates_results=False
    )
    row_checksums: bool = _setting(False, "extract", "Store the checksum of every feature map as well.")

    store: str = _setting(
        "auto",
        "fit",
        "Source of FMCE-Net's feature maps: the store on disk, all in (GPU) memory, or recomputed by the backbones.",
        invalidates_results=False,
        choices=("auto", "disk", "memory", "recompute"),
    )
    split: str = _setting("image", "fit", "3:1 by image (no image on both sides) or by map.", choices=("image", "map"))
    fmce_epochs: int = _setting(10, "fit", "Epochs of FMCE-Net.", at_least=1)
    fmce_batch_size: int = _setting(128, "fit", "Feature maps in a batch of FMCE-Net.", at_least=1)
    fmce_lr: float = _setting(5e-4, "fit", "Adam's learning rate for FMCE-Net.", above=0.0)

    @property
    def is_recorded(self) -> bool:
        """Whether the images and the training loop of the run are its owner's, not ours."""
        return self.data == RECORDED

    @property
    def cqi_settings(self) -> dict[str, Any]:
        """The keyword arguments of `fmcefast.cqi`."""
        return {"alpha": self.alpha, "window": self.window, "smoothing": self.smoothing}

    @property
    def convergence_settings(self) -> dict[str, Any]:
        """The keyword arguments of `converged_at`."""
        return {"mu": self.mu, "start": self.start, "min_drop": self.min_drop, **self.cqi_settings}

    @property
    def marker_settings(self) -> dict[str, Any]:
        """The keyword arguments of `fmcefast.find_markers`."""
        return {"phases": self.phases, **self.convergence_settings}

    @property
    def of_results(self) -> dict[str, Any]:
        """The settings that results depend on. `resident_size` is None where no image files are reduced: only
        `loader=resident` reduces them."""
        settings = {name: value for name, value in self.as_dict().items() if SETTINGS[name].invalidates_results}
        reduces = self.loader == "resident" and DataSpec.parse(self.data).is_files
        return settings if reduces else {**settings, "resident_size": None}

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def differences(self, other: "Config") -> dict[str, tuple[Any, Any]]:
        """{name: (own value, other value)} of the fields in which two configurations differ."""
        mine, theirs = self.as_dict(), other.as_dict()
        return {name: (mine[name], theirs[name]) for name in mine if mine[name] != theirs[name]}


def _settings() -> dict[str, Setting]:
    hints = get_type_hints(Config)
    kinds = {name: get_args(hint)[0] if isinstance(hint, UnionType) else hint for name, hint in hints.items()}
    return {spec.name: Setting(spec.name, kinds[spec.name], spec.default, **spec.metadata) for spec in fields(Config)}


SETTINGS = _settings()

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
    data = str(given.get("data", SETTINGS["data"].default))
    spec = DataSpec.parse(data)
    if data != RECORDED and (spec.name not in PRESETS or (spec.path is not None) != (spec.name == "folder")):
        raise unknown_name("data set", data, [*PRESETS.keys() - {"folder"}, "folder:PATH"])
    # Where a path leads must not depend on where the next command starts.
    preset = {"data_root": SETTINGS["data_root"].default, **PRESETS.get(spec.name, {})}
    config = Config(**{name: check_value(name, value) for name, value in {**preset, **given}.items()})
    check_parameters(alpha=config.alpha, smoothing=config.smoothing, min_drop=config.min_drop)
    return config


def saved_settings(path: Path) -> dict[str, Any]:
    """The settings of a run's config.yaml. Those that an earlier version did not have are as they were then."""
    return {"min_drop": 0.0, **read_yaml(path)}


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
    if name not in SETTINGS:
        raise unknown_name("setting", name, SETTINGS)
    return name


def check_value(name: str, value: Any) -> Any:
    """`value` in the type of the setting `name`, or InputError."""
    setting = SETTINGS[name]
    if value is None and setting.default is None:
        return None
    if value is False and "off" in setting.choices:
        value = "off"  # which YAML reads as false
    converted = _converted(setting.kind, value)
    if converted is MISSING:
        raise InputError(f"`{name}` takes {setting.kind.__name__} values, not {value!r}.")
    if setting.choices and converted not in setting.choices:
        raise unknown_name(f"value of `{name}`", converted, setting.choices)
    if setting.at_least is not None and converted < setting.at_least:
        raise InputError(f"`{name}` must be at least {setting.at_least}, not {converted}.")
    if setting.at_most is not None and converted > setting.at_most:
        raise InputError(f"`{name}` must be at most {setting.at_most}, not {converted}.")
    if setting.above is not None and not converted > setting.above:
        raise InputError(f"`{name}` must be greater than {setting.above:g}, not {converted}.")
    if name == "data_root":
        return _whole_path(converted)
    if name == "data" and (path := DataSpec.parse(converted).path) is not None:
        return str(DataSpec("folder", Path(_whole_path(path))))
    return converted


def _converted(kind: type, value: Any) -> Any:
    """The value as a finite `kind`, or MISSING."""
    if kind is bool or isinstance(value, bool):  # to Python, True is an int
        return value if kind is bool and isinstance(value, bool) else MISSING
    if value is None:
        return MISSING
    try:
        converted = kind(value)  # YAML reads 1e-4 as a string
        if (kind is int and converted != float(value)) or (kind is float and not isfinite(converted)):
            return MISSING
    except (TypeError, ValueError, OverflowError):
        return MISSING
    return converted


def _whole_path(path: str | Path) -> str:
    return str(Path(path).expanduser().resolve())
