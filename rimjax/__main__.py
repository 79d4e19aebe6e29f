"""`python -m rimjax` and the `rimjax` command."""

import sys


def main() -> None:
    """Run the command line; where a package is missing, say which extra installs it."""
    try:
        from rimjax.commands.main import main as run
    except ModuleNotFoundError as error:
        remedy = 'pip install "rimjax[pipeline]"'
        print(f"rimjax: the command line needs {error.name}: {remedy}", file=sys.stderr)
        sys.exit(2)
    run()


if __name__ == "__main__":
    main()
