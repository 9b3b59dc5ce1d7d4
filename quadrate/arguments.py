"""The command lines of the processes, which take nothing but the environment: what `--help` says, and that all else is refused."""

from __future__ import annotations

import argparse


def parser(program: str, what: str, variables: str) -> argparse.ArgumentParser:
    """Return the parser of a process's command line. It ends the process with status 0 after `--help`, and 2 for what it does not know.

    Args:
        program: How the process is called.
        what: What it is, as a sentence.
        variables: What the names of its variables begin with.
    """
    return argparse.ArgumentParser(
        prog=program,
        description=f"{what} It is configured by environment variables, {variables}, and by the files that they name.",
        epilog="All variables and files: docs/configuration.md.",
        allow_abbrev=False,
    )
