"""Evaluation: metrics of one case, the table of all cases, and pictures a person can look at."""
