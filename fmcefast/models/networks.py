"""Image classifiers of torchvision and timm by name, and their tracer."""

import sys

import torchvision
from torch import fx, nn

from fmcefast.errors import InputError, unknown_name

_TIMM = "timm:"
# The only layers of timm that are traced into: they hold the pooling.
_OPEN_LAYERS = ("timm.layers.classifier", "timm.layers.adaptive_avgmax_pool")


def check_backbone(name: str) -> None:
    """Raise InputError unless `name` is an image classifier of torchvision or, after `timm:`, of timm."""
    known = torchvision.models.list_models(module=torchvision.models)
    if name.startswith(_TIMM):
        known = [_TIMM + model for model in _timm().list_models()]
    if name not in known:
        raise unknown_name("backbone", name, known)


def make_network(name: str, classes: int) -> nn.Module:
    """The whole classifier, with fresh weights from torch's global generator. Raises InputError like check_backbone."""
    check_backbone(name)
    if name.startswith(_TIMM):
        return _timm().create_model(name.removeprefix(_TIMM), pretrained=False, num_classes=classes)
    return torchvision.models.get_model(name, weights=None, num_classes=classes, **_without_auxiliary_heads(name))


class Tracer(fx.Tracer):
    """Traces a network in training mode to a graph that is right in training and evaluation."""

    def __init__(self) -> None:
        timm = sys.modules.get("timm")
        super().__init__(autowrap_functions=tuple(timm.models.get_notrace_functions()) if timm else ())
        self._whole = tuple(timm.models.get_notrace_modules()) if timm else ()

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        home = module.__module__
        # Traced into, these would keep their training flag for ever.
        depends_on_mode = home.startswith("torchvision.ops.stochastic") or (
            home.startswith("timm.layers") and not home.startswith(_OPEN_LAYERS)
        )
        return depends_on_mode or isinstance(module, self._whole) or super().is_leaf_module(module, qualified_name)


def _timm():
    try:
        import timm
    except ImportError as error:
        raise InputError("timm is not installed. Install it: pip install 'fmcefast[timm]'") from error
    return timm


def _without_auxiliary_heads(name: str) -> dict[str, bool]:
    return {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
