"""Segment the pictures of a folder: an overlay of each, and a table of what they show.

Command:  python examples/segment_folder.py photos "sneaker,bag" --output out
              mini; 2 CPU cores; each class is drawn once
          python examples/segment_folder.py photos "car,tram,tree" --preset paper --output out
              `rimjax weights download`, and a GPU

A script to copy from. `rimjax segment` does the same with more formats, reads ahead, and goes on
after a stop.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np

import rimjax

SUFFIXES = (".jpg", ".jpeg", ".png")


def main() -> None:
    parser = argparse.ArgumentParser(description="Segment the pictures of a folder.")
    parser.add_argument("folder", type=Path, help="folder with .jpg and .png pictures")
    parser.add_argument("classes", help='class names, e.g. "sneaker,bag"')
    parser.add_argument("--preset", default="mini", choices=["mini", "paper"])
    parser.add_argument("--output", type=Path, default=Path("out"), help="folder for the results")
    options = parser.parse_args()
    paths = sorted(path for path in options.folder.glob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        parser.error(f"{options.folder}: no .jpg or .png picture in this folder")
    options.output.mkdir(parents=True, exist_ok=True)

    models = rimjax.load_preset(options.preset)
    bank = rimjax.build_bank(options.classes.split(","), models)
    with (options.output / "shares.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["picture", *bank.names])
        for path in paths:
            image = rimjax.read_image(path)
            seg = rimjax.segment(image, bank, models)
            rimjax.draw.overlay(image, seg).save(options.output / f"{path.stem}.png")
            counts = np.bincount(seg.labels.ravel(), minlength=len(seg.names))
            table.writerow([path.name, *(counts / counts.sum()).round(4).tolist()])
            print(f"{path.name}: {len(seg.segments)} segments")
    print(f"-> {options.output}")


if __name__ == "__main__":
    main()
