"""One run: its folder, checkpoints, loggers and what it shows while it runs."""
