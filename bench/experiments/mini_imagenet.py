r"""The papers' large experiment: Mini-ImageNet under ResNet-50 and ShuffleNetV2, from training to FMCE-Net++.

    fmcefast bench mini-imagenet --data-root ~/data --plan      # what it will take; nothing is made
    fmcefast bench mini-imagenet --data-root ~/data             # ~/data/mini-imagenet holds the release

The rows mini-imagenet-r and mini-imagenet-s of `fmcefast bench reproduce`, whose arguments it takes.
"""

import sys
from collections.abc import Sequence

from fmcefast.bench.experiments import reproduce

ROWS = ("mini-imagenet-r", "mini-imagenet-s")


def main(argv: Sequence[str] | None = None) -> None:
    reproduce.main([*ROWS, *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    main()
