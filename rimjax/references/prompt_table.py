"""References in a table: a class, a photograph, and a point or box on it, in each row of a CSV."""

from __future__ import annotations

import csv
from pathlib import Path

from rimjax.datasets.dataset import read_lines
from rimjax.datasets.names import clean_name
from rimjax.references.photographs import read_upright_size
from rimjax.references.reference import Reference, check_prompt

POINT, BOX = ("x", "y"), ("x0", "y0", "x1", "y1")


def read_prompt_table(path: str | Path) -> dict[str, list[Reference]]:
    """Read references from a CSV.

    Args:
        path: a file whose first line is `class,image,x,y` (points) or `class,image,x0,y0,x1,y1`
            (boxes), the columns in any order; images relative to the file, numbers in pixels. Other
            columns and lines that begin with "#" aren't read.

    Returns:
        Class names to references, in the file's order; pass it to `build_bank` as `references`.

    Raises:
        FileNotFoundError: the table or an image isn't there.
        ValueError: it lacks a column or has no row, or a row is malformed, or its point or box
            outside the image; the message names the line.
    """
    path = Path(path)
    lines = read_lines(path, "a CSV with columns class,image,x,y or class,image,x0,y0,x1,y1")
    lines = ["" if line.startswith("#") else line for line in lines]  # which keeps the numbers
    rows = csv.reader(lines, skipinitialspace=True)
    first = next((row for row in rows if any(row)), [])
    header = [word.strip().lower() for word in first]
    fitting = [
        each
        for each in (POINT, BOX)
        if all(header.count(name) == 1 for name in ("class", "image", *each))
    ]
    if len(fitting) != 1:
        raise ValueError(
            f"{path}: its first line must be class,image,x,y or class,image,x0,y0,x1,y1, got "
            f"{','.join(header)!r}"
        )
    (columns,) = fitting
    sizes: dict[Path, tuple[int, int] | None] = {}
    references: dict[str, list[Reference]] = {}
    for row in rows:
        if not any(word.strip() for word in row):
            continue
        place = f"{path}, line {rows.line_num}"
        if len(row) != len(header):
            raise ValueError(f"{place}: must have {len(header)} columns, got {len(row)}")
        fields = {name: word.strip() for name, word in zip(header, row, strict=True)}
        name, image = clean_name(fields["class"]), path.parent / fields["image"]
        if not name or not fields["image"]:
            raise ValueError(f"{place}: class and image must not be blank")
        if not image.is_file():
            raise FileNotFoundError(f"{place}: {image}: no such image file")
        try:
            numbers = tuple(float(fields[column]) for column in columns)
            prompt = {"point" if columns is POINT else "box": numbers}
            reference = Reference(image, **prompt)  # pyright: ignore[reportArgumentType]
            if image not in sizes:
                sizes[image] = read_upright_size(image)
            if (size := sizes[image]) is not None:
                check_prompt(reference.point, reference.box, size, image)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
        references.setdefault(name, []).append(reference)
    if not references:
        raise ValueError(f"{path}: holds no row under its first line; write a photograph a line")
    return references
