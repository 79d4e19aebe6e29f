"""Test the matching kernels on each Python at hand, with the oldest and newest JAX.

`nox` runs every session whose Python is installed; `nox -s "kernels-3.13(newest)"` runs one.
"""

import sys
import tomllib
from pathlib import Path

import nox

nox.options.default_venv_backend = "venv"
nox.options.error_on_missing_interpreters = False

PYTHONS = ["3.11", "3.12", "3.13", "3.14"]
NEEDS_NEWER_JAX = {"3.14": "0.8"}  # the first release with wheels for that Python
TESTS = ("tests/match", "rimjax/match", "docs/match")


def find_jax_bound(sign: str) -> str:
    """Return the version after `sign` in pyproject.toml's requirement on jax."""
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    requirement = next(text for text in project["dependencies"] if text.startswith("jax>"))
    bounds = requirement.removeprefix("jax").split(",")
    return next(bound.removeprefix(sign) for bound in bounds if bound.startswith(sign))


@nox.session(python=PYTHONS)
@nox.parametrize("jax", ["oldest", "newest"], ids=["oldest", "newest"])
def kernels(session: nox.Session, jax: str) -> None:
    """Run the kernels' tests on the base install alone."""
    oldest = NEEDS_NEWER_JAX.get(str(session.python), find_jax_bound(">="))
    pin = f"jax=={oldest}.*" if jax == "oldest" and oldest.count(".") == 1 else f"jax=={oldest}"
    session.install(".[test]", *([pin] if jax == "oldest" else []))
    session.run("python", "-c", "import jax, sys; print(sys.version.split()[0], jax.__version__)")
    session.run("pytest", *TESTS, *session.posargs)


if __name__ == "__main__":
    sys.exit("run `nox`")
