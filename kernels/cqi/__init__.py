"""The Convergence Quantification Indicator of long loss sequences: plain loops, and a search that skips most."""
