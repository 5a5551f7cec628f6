"""The benchmarks behind every measured claim: `fmcefast bench SUITE`."""

SUITES = {
    "head": "the FMCE-Net head as a loss, against PyTorch's layers",
    "ral-step": "a training step under FMCE-Net++, against plain training",
    "train": "training a backbone, against the bare step",
    "decode": "loading images, against torchvision and DALI",
    "extract": "feature maps of a backbone to disk, against the bare loop",
    "writer": "feature maps to disk, against other formats and the disk itself",
    "reader": "random feature maps from disk, likewise",
    "cqi": "the search for convergence in long logs, against pandas and others",
    "logs": "whole processes of `fmcefast markers LOG`",
    "pipeline": "`fmcefast run`, from a cold start",
    "plus-plus": "what FMCE-Net's scores and FMCE-Net++ are worth on a data set",
    "reproduce": "a row of the papers' tables",
    "mini-imagenet": "the papers' large experiment",
    "gpu-tests": "the tests that need a GPU",
    "all": "those that take minutes, one after another",
}
