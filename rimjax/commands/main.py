"""The command line: `rimjax demo | segment | bank | evaluate | regions | weights | ...`."""

from __future__ import annotations

import io
import os
import sys
import warnings
from functools import partial
from importlib import metadata
from typing import Annotated, Any

import tyro

from rimjax.commands.app import App
from rimjax.commands.bank import Bank
from rimjax.commands.bench import Bench
from rimjax.commands.console import name_flag, shorten, warn
from rimjax.commands.convert_coco import ConvertCoco
from rimjax.commands.demo import Demo
from rimjax.commands.devices import share_gpu_memory
from rimjax.commands.doctor import Doctor
from rimjax.commands.evaluate import Evaluate
from rimjax.commands.regions import Regions
from rimjax.commands.report import Report
from rimjax.commands.segment import Segment
from rimjax.commands.weights import Weights
from rimjax.distributed.cluster import FullClusterWarning
from rimjax.images import PictureWarning
from rimjax.models.memory import MemoryRunsOut
from rimjax.references.reference import ReferenceWarning

Command = (
    Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[Segment, tyro.conf.subcommand("segment")]
    | Annotated[App, tyro.conf.subcommand("app")]
    | Annotated[Bank, tyro.conf.subcommand("bank")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Regions, tyro.conf.subcommand("regions")]
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

_IN_ONE_LINE = (FullClusterWarning, PictureWarning, ReferenceWarning, MemoryRunsOut)


def main() -> None:
    """Run a command; bad input is one line on standard error and exit status 2."""
    share_gpu_memory()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that it can't encode mustn't end a run
            stream.reconfigure(errors="backslashreplace")
    with warnings.catch_warnings():
        for category in _IN_ONE_LINE:
            warnings.simplefilter("default", category)
        warnings.showwarning = partial(_show_warning, warnings.showwarning)
        try:
            try:
                _run_command()
            finally:
                sys.stdout.flush()
        except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except KeyboardInterrupt:
            print("rimjax: stopped", file=sys.stderr)
            sys.exit(130)


def _run_command() -> None:
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
    except BrokenPipeError:
        raise
    except (ValueError, OSError, ImportError, MemoryError) as error:
        print(f"rimjax: {name_flag(shorten(error), command)}", file=sys.stderr)
        sys.exit(2)


def _show_warning(show: Any, message: Any, category: type[Warning], *where: Any) -> None:
    """Print warnings that are meant for users on a line of their own, others as before."""
    if issubclass(category, _IN_ONE_LINE):
        warn(str(message))
    else:
        show(message, category, *where)


if __name__ == "__main__":
    main()
