"""The pages of runs, comparisons and logs, and their figures."""
