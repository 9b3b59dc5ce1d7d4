"""The command `quadrate`. It starts services as processes, by the very commands that the containers run, and imports none of them."""


def main() -> None:
    """Run the command line. What it needs is imported here, so that the supervisor's own process stays small."""
    from quadrate.cli.app import run  # noqa: PLC0415

    run()
