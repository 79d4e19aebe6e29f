"""`rimjax convert-coco`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from PIL import Image

from rimjax.commands.console import progress, warn, write_picture
from rimjax.commands.options import default
from rimjax.datasets import coco


@dataclass(frozen=True)
class ConvertCoco:
    """Write COCO Object's label PNGs for val2017.

    They come from COCO-Stuff 164k's pixel maps, or from COCO's instance JSON.

    Example: rimjax convert-coco --data data/coco_stuff164k

    Attributes:
        data: Folder with images/val2017 and annotations/val2017.
        instances: COCO's instances_val2017.json.
    """

    data: Path
    instances: Annotated[Path | None, default("the pixel maps in annotations/val2017")] = None

    def run(self) -> None:
        folder, skipped = coco.locate_labels(self.data), 0
        if self.instances is None:
            maps = coco.list_stuff_maps(folder)
        else:
            coco.locate_images(self.data)  # a mistyped folder must not receive thousands of PNGs
            maps, skipped = coco.list_outline_maps(self.instances)
        existing = 0
        for name in progress(maps, "convert", "image"):
            if (target := folder / f"{name}{coco.SUFFIX}").exists():
                existing += 1
            else:
                write_picture(target, Image.fromarray(maps[name]()))
        if skipped:
            warn(f"{skipped} outlines are missing or have fewer than three points: not drawn")
        kept = f"; {existing} existed already (delete them to write them again)"
        print(f"{len(maps)} label maps in {folder}{kept if existing else ''}")
