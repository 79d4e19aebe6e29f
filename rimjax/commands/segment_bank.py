"""The bank that `rimjax segment` matches against."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from rimjax.commands.class_options import Classes
from rimjax.commands.console import show_class_progress
from rimjax.commands.fill import draw_classes
from rimjax.distributed.cluster import Workers
from rimjax.distributed.fill import Load
from rimjax.files import fingerprint
from rimjax.models.protocols import Models
from rimjax.pipeline import check_encoder
from rimjax.references import store
from rimjax.references.build import assemble_bank, build_references, load_bank
from rimjax.types import ReferenceBank

MOST_CLASSES = 65534
"""As many as a 16-bit PNG can tell apart, beside the background and "unknown"."""


def check_label_format(names: Collection[str]) -> None:
    """Raise ValueError, before any work is done, for more classes than a label PNG can tell."""
    if len(names) > MOST_CLASSES:
        raise ValueError(
            f"classes must be at most {MOST_CLASSES}, as many as a 16-bit label PNG can tell "
            f"apart, got {len(names)}; segment with several banks"
        )


def digest_bank(bank: ReferenceBank) -> str:
    """Return a digest of what a bank's matching depends on."""
    arrays = {"prototypes": bank.prototypes, "owners": bank.owners, "classes": bank.classes}
    if bank.whitening is not None:
        arrays |= {"mean": bank.whitening.mean, "matrix": bank.whitening.matrix}
    return fingerprint([bank.names, bank.encoder], arrays)


def open_bank(
    manifest: store.Manifest | None,
    classes: Classes,
    models: Models,
    load: Load,
    cache_dir: Path | None,
    workers: Workers | None,
) -> tuple[ReferenceBank, store.Manifest]:
    """Return the bank and its manifest; without a manifest it is built.

    Args:
        manifest: of a finished bank; None for none.
        classes: names and photographs; with a manifest, names that must be the bank's.
        models: this machine's.
        load: loads the same models in a worker.
        cache_dir: keeps banks.
        workers: draw classes; None for this process.

    Raises:
        ValueError: the classes aren't the bank's, or another encoder made it.
    """
    names, references = classes
    if manifest is None:
        cache = store.locate_cache(cache_dir)
        draw_classes(names, references, models, load, cache, workers)
        manifest, groups = build_references(
            names,
            models,
            cache_dir=cache_dir,
            references=references,
            progress=show_class_progress,
        )
        return assemble_bank(groups, models.references, models.features), manifest
    bank = load_bank(manifest, models.references)
    check_encoder(bank, models)
    if names and (tuple(names) != bank.names[1:]):
        held = ", ".join(bank.names[1:])
        raise ValueError(
            f"classes must be the bank's ({held}), got {', '.join(names)}; leave --classes out"
        )
    kept = {name: prompts for name, prompts in names.items() if prompts}
    if kept and kept != manifest.prompts:
        raise ValueError("classes must have the bank's prompts or none; leave --classes out")
    return bank, manifest
