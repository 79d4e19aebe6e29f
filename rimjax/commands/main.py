"""The command line: `rimjax demo | segment | bank | evaluate | convert-coco | weights | ...`."""

from __future__ import annotations

import os
import sys
from importlib import metadata
from typing import Annotated

import tyro

from rimjax.commands.bank import Bank
from rimjax.commands.bench import Bench
from rimjax.commands.console import name_flag, shorten
from rimjax.commands.convert_coco import ConvertCoco
from rimjax.commands.demo import Demo
from rimjax.commands.doctor import Doctor
from rimjax.commands.evaluate import Evaluate
from rimjax.commands.segment import Segment
from rimjax.commands.weights import Weights

Command = (
    Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[Segment, tyro.conf.subcommand("segment")]
    | Annotated[Bank, tyro.conf.subcommand("bank")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[ConvertCoco, tyro.conf.subcommand("convert-coco")]
    | Annotated[Weights, tyro.conf.subcommand("weights")]
    | Annotated[Doctor, tyro.conf.subcommand("doctor")]
    | Annotated[Bench, tyro.conf.subcommand("bench")]
)

CONFIG = (
    tyro.conf.OmitArgPrefixes,
    tyro.conf.OmitSubcommandPrefixes,
    tyro.conf.DisallowNone,
    tyro.conf.HelptextFromCommentsOff,
)


def main() -> None:
    """Run a command; bad input is one line on standard error and exit status 2."""
    if sys.argv[1:] == ["--version"]:
        print(f"rimjax {metadata.version('rimjax')}")
        return
    description = (
        "Training-free open-vocabulary segmentation: RIM in JAX. `rimjax demo` shows the whole "
        "method; `rimjax COMMAND --help` explains a command; `rimjax --version`."
    )
    command = tyro.cli(Command, prog="rimjax", description=description, config=CONFIG)
    try:
        command.run()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError, ImportError) as error:
        print(f"rimjax: {name_flag(shorten(error), command)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("rimjax: stopped", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
