"""Feature Map Convergence Evaluation, fast: how mature are a backbone's feature maps?

[FMCE] in docstrings is Zhang et al., Feature Map Convergence Evaluation for Functional Module, arXiv 2405.04041.
"""

from importlib import import_module
from importlib.util import find_spec

__version__ = "0.1.0"

if find_spec("fmcefast._core") is None:
    raise ImportError(
        "fmcefast's compiled core is missing: this is the source folder, not the installed package. Run `pip "
        "install .`, then start Python outside the repository or use `pytest` instead of `python -m pytest`."
    )

_HOME_OF = {
    "ConvergenceRecorder": "fmcefast.recorder.recorder",
    "FMCENet": "fmcefast.models.fmce_net",
    "FMCSLoss": "fmcefast.losses.fmcs",
    "FeatureMapDataset": "fmcefast.features.dataset",
    "FeatureMapLoader": "fmcefast.features.loader",
    "FeatureMapWriter": "fmcefast.features.writer",
    "FeatureVectorCache": "fmcefast.learning.vector_cache",
    "FusedFMCSLoss": "fmcefast.losses.fused",
    "InvariantScore": "fmcefast.maturity.invariant_score",
    "LayerWatch": "fmcefast.learning.layer_watch",
    "Markers": "fmcefast.convergence.markers",
    "RepresentationAuxiliaryLoss": "fmcefast.losses.representation_auxiliary",
    "Stopping": "fmcefast.convergence.stopping",
    "cqi": "fmcefast.convergence.cqi",
    "find_markers": "fmcefast.convergence.markers",
    "judge": "fmcefast.convergence.verdict",
    "probe": "fmcefast.maturity.probe",
    "verdict": "fmcefast.convergence.verdict",
}

__all__ = [
    "ConvergenceRecorder",
    "FMCENet",
    "FMCSLoss",
    "FeatureMapDataset",
    "FeatureMapLoader",
    "FeatureMapWriter",
    "FeatureVectorCache",
    "FusedFMCSLoss",
    "InvariantScore",
    "LayerWatch",
    "Markers",
    "RepresentationAuxiliaryLoss",
    "Stopping",
    "cqi",
    "find_markers",
    "judge",
    "probe",
    "verdict",
]


def __getattr__(name: str):
    if name not in _HOME_OF:
        raise AttributeError(f"module 'fmcefast' has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__():
    return sorted([*globals(), *_HOME_OF])
