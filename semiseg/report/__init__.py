"""Runs compared: tables, statistics and the HTML report."""
