"""What the suites and experiments share, and what turns their results into documents."""
