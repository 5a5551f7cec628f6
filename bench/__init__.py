"""The benchmarks behind every measured claim, as `fmcefast bench NAME`.

suites/ measure speed, experiments/ test what the methods are worth, tools/ hold what they share and what turns
results/ into documents.
"""

# {name: (module under fmcefast.bench, description)}
SUITES = {
    "head": ("suites.head", "the FMCE-Net head as a loss, against PyTorch's layers"),
    "fit": ("suites.fit", "a training step of FMCE-Net, against the plain loop of its layers"),
    "ral-step": ("suites.ral_step", "a training step under FMCE-Net++, against plain training"),
    "train": ("suites.train", "training a backbone, against the bare step"),
    "start": ("suites.start", "the first seconds of a training, in fresh processes"),
    "busy": ("suites.busy", "training where other processes are busy, against threads that spin"),
    "decode": ("suites.decode", "loading images, against torchvision and DALI"),
    "extract": ("suites.extract", "feature maps of a backbone to disk, against the bare loop"),
    "writer": ("suites.writer", "feature maps to disk, against other formats and the disk itself"),
    "reader": ("suites.reader", "random feature maps from disk, likewise"),
    "cqi": ("suites.cqi", "the search for convergence in long logs, against pandas and others"),
    "logs": ("suites.logs", "whole processes of `fmcefast markers LOG`"),
    "probe": ("suites.probe", "maturity statistics, against the forward passes that they need"),
    "cache-step": ("suites.cache_step", "a step that skips what feature maps explain, against the plain step"),
    "pipeline": ("suites.pipeline", "`fmcefast run`, from a cold start"),
    "plus-plus": ("experiments.plus_plus", "what FMCE-Net's scores and FMCE-Net++ are worth on a data set"),
    "maturity": (
        "experiments.maturity.experiment",
        "which number tells how mature a checkpoint is, over many trainings",
    ),
    "convergence": ("experiments.convergence", "has a training learned when its loss counts as converged?"),
    "invariance-loss": ("experiments.invariance_loss", "invariance as an auxiliary loss, beside FMCE-Net's"),
    "cache": ("experiments.cache", "skipping what feature maps explain, beside other ways to skip"),
    "feature-maps": ("experiments.feature_maps", "training on feature maps, and images that mislead"),
    "reproduce": ("experiments.reproduce", "a row of the papers' tables"),
    "mini-imagenet": ("experiments.mini_imagenet", "the papers' large experiment"),
    "gpu-tests": ("suites.gpu_tests", "the tests that need a GPU"),
    "all": ("suites.all", "those that take minutes, one after another"),
}
