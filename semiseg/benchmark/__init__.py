"""A grid of runs: methods x data sets x label fractions x folds x seeds x initialisations."""
