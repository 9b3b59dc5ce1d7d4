"""`python -m quadrate.cli`: the command where no console script is installed."""

from quadrate.cli import main

main()
