"""`python -m rimjax` and the `rimjax` command."""

import sys


def main() -> None:
    """Run the command line, or say which extra it needs."""
    try:
        from rimjax.cli import main as run
    except ModuleNotFoundError as error:
        print(f'rimjax: the command line needs {error.name}: pip install "rimjax[pipeline]"', file=sys.stderr)
        sys.exit(2)
    run()


if __name__ == "__main__":
    main()
