"""``python -m bayeskit``: the command line."""

from bayeskit.cli import app

app()
