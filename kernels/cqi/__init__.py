"""The CQI of long loss sequences: plain loops, the same compiled, and a search that skips most of a sequence."""
