"""`rimjax segment`."""

from __future__ import annotations

import sys
import warnings
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NoReturn

import numpy as np
import tyro

from rimjax.commands.class_options import ClassOptions
from rimjax.commands.console import (
    describe_origin,
    keep_compilations,
    progress,
    shorten,
    warn,
)
from rimjax.commands.explanation import ExplainOptions
from rimjax.commands.options import (
    CACHE_DEFAULT,
    NO_DEFAULT,
    Flag,
    ModelOptions,
    RayOptions,
    UnknownOptions,
    default,
    report_stage,
)
from rimjax.commands.segment_bank import check_label_format, open_bank
from rimjax.commands.segment_files import Outputs, list_pictures, warn_of_unfamiliar
from rimjax.commands.segment_run import Run, segment_images
from rimjax.datasets.dataset import read_ahead
from rimjax.distributed.cluster import Workers
from rimjax.distributed.fill import Load
from rimjax.files import write_json
from rimjax.images import read_image
from rimjax.models.protocols import Models
from rimjax.pipeline import UnfamiliarImageWarning, segment
from rimjax.references import store
from rimjax.results import Segmentation
from rimjax.settings import name_configuration
from rimjax.show.draw import OPACITY
from rimjax.types import BACKGROUND, ReferenceBank


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Segment images into classes that you name.

    With a folder as --output, a stopped run goes on with the same command: images that are done
    already, with the same content and settings, aren't segmented again.

    Example: rimjax segment photo.jpg --classes "sneaker,bag" --output out.png --json out.json
    Example: rimjax segment photos --classes "sneaker,bag" --output out --format labels,coco
    Example: rimjax segment photo.jpg --bank BANK.json --explain why.png --explain-at 120,80
    Example: rimjax segment photos --bank BANK.json --output out --ray auto --ray-gpus 1

    Attributes:
        files: Image files, folders, or patterns such as "photos/*.jpg".
        bank: A bank's manifest, as `rimjax bank build` prints it, or a packed bank, instead of
            building a bank. It keeps its configuration unless --configuration is given.
        output: The overlay's PNG file, or a folder (a name without a suffix) for all files.
        format: What to write, comma-separated. Of each image: overlay (NAME_segmented.png), labels
            (NAME_labels.png, a palette PNG of class indices), ids (NAME_ids.png, a number for each
            segment), yolo (NAME.txt, polygons). Of all images, in the folder: coco
            (annotations.json) and coco-results (results.json, for COCOeval).
        coco_ids: A COCO file of the same images, whose image and category ids coco and coco-results
            take over.
        opacity: Opacity of the overlay's colours, from 0 to 1.
        json: File for segments, scores, settings and timings; it grows with the images.
        jobs: Threads that read images, and that write results, while the models work.
        overwrite: Replace files that rimjax didn't write; its own are always replaced.
        stop_on_error: End at the first image that can't be used, with exit status 2. Otherwise the
            others are segmented, the bad ones listed at the end, and the exit status is 1.
        cache_dir: Folder that keeps banks.
    """

    files: Annotated[tyro.conf.Positional[tuple[Path, ...]], NO_DEFAULT]
    references: ClassOptions = field(default_factory=ClassOptions)
    bank: Annotated[Path | None, NO_DEFAULT] = None
    output: Annotated[Path | None, default("NAME_segmented.png here")] = None
    format: str = "overlay,labels"
    coco_ids: Annotated[Path | None, NO_DEFAULT] = None
    opacity: float = OPACITY
    json: Annotated[Path | None, NO_DEFAULT] = None
    jobs: int = 2
    overwrite: Flag = False
    stop_on_error: Flag = False
    cache_dir: Annotated[Path | None, CACHE_DEFAULT] = None
    cluster: RayOptions = field(default_factory=RayOptions)
    naming: UnknownOptions = field(default_factory=UnknownOptions)
    explaining: ExplainOptions = field(default_factory=ExplainOptions)
    models: ModelOptions = field(default_factory=ModelOptions)

    def run(self) -> None:
        if not self.files:
            raise ValueError("segment needs at least one image file, got none")
        if not self.references.is_given and self.bank is None:
            raise ValueError('classes must be given, e.g. --classes "sneaker,bag"; or give --bank')
        if self.bank is None:
            classes = self.references.read(self.models.preset)
            check_label_format(classes[0])
        else:
            classes = self.references.read_names(with_bank=True), {}
        if self.jobs < 1:
            raise ValueError(f"jobs must be at least 1, got {self.jobs}")
        files = list_pictures(self.files)
        self.explaining.check(files)
        formats = [name.strip() for name in self.format.split(",")]
        settings = (formats, self.json, self.coco_ids, self.opacity, self.explaining.explain)
        outputs = Outputs(files, self.output, *settings)
        outputs.check(self.overwrite)
        workers = self.cluster.open()
        if workers is not None:
            outputs.check_for_workers()
        if self.bank is None:
            outputs.check_ids((BACKGROUND, *classes[0]))
        bad: dict[Path, str] = {}
        if not any(self._read(path, bad) is not None for path in files):
            self._end(bad, len(files))  # before the models are loaded and a bank is drawn
        models = self.models.load(with_bank=self.bank is not None)
        keep_compilations(store.locate_cache(self.cache_dir))
        manifest = None if self.bank is None else store.read_manifest(self.bank)
        if manifest is not None:
            check_label_format(manifest.names)
            models = self.models.adopt_bank(manifest, models)
        models = self.naming.apply(models)
        named = classes[0] if manifest is None else manifest.names
        models.segmentation.list_names((BACKGROUND, *named))  # before a bank is drawn
        load = partial(self.models.load, with_bank=manifest is not None)
        bank, manifest = open_bank(manifest, classes, models, load, self.cache_dir, workers)
        shown = models.segmentation.list_names(bank.names)
        outputs.check_ids(shown)
        configuration = name_configuration(models.references, models.segmentation)
        print(f"configuration: {configuration}")
        bad.clear()
        warnings.simplefilter("ignore", UnfamiliarImageWarning)  # one for all images, at the end
        origin = {"names": shown, **describe_origin(models)}
        results: list[dict[str, Any]] = []
        report: dict[str, Any] = {"results": results, "bad_images": {}, **origin}
        try:
            resumes = self.explaining.explain is None  # a stored result can't be explained
            done = Run(outputs, bank, models, origin, resumes)
            if workers is not None:
                self._segment_by_workers(outputs, bank, models, load, workers, done, bad)
            found = self._segment_files(outputs, bank, manifest, models, done, bad, results)
            for count, _ in enumerate(progress(found, "segment", "image", len(files)), 1):
                report["bad_images"] = {str(path): reason for path, reason in bad.items()}
                if self.json is not None and count % max(1, count // 20) == 0:
                    write_json(self.json, report)  # not for each of thousands: it grows with them
        except BaseException:
            with suppress(OSError):
                if self.json is not None and results:
                    write_json(self.json, report)
            raise
        warn_of_unfamiliar(results, models.name)
        outputs.write_shared(results, origin)
        if self.json is not None:
            write_json(self.json, report)
        if bad:
            self._end(bad, len(files))

    def _segment_by_workers(
        self,
        outputs: Outputs,
        bank: ReferenceBank,
        models: Models,
        load: Load,
        workers: Workers,
        done: Run,
        bad: dict[Path, str],
    ) -> None:
        """Segment the images that aren't done by workers; leave what they can't read."""
        folder, cache = outputs.check_for_workers(), store.locate_cache(self.cache_dir)
        todo = [path for path in outputs.files if not done.has(path)]
        made = segment_images(todo, outputs, folder, bank, models, load, cache, workers)
        for path, entry in made:
            if isinstance(entry, ChildProcessError):
                self._note(path, f"{path}: {shorten(entry)}", bad)
                warn(bad[path])
            elif not isinstance(entry, Exception):
                done.add(path, entry)

    def _segment_files(
        self,
        outputs: Outputs,
        bank: ReferenceBank,
        manifest: store.Manifest,
        models: Models,
        done: Run,
        bad: dict[Path, str],
        results: list[dict[str, Any]],
    ) -> Iterator[Path]:
        """Segment images and write their files; yield each image, and collect the results.

        Images are read before their turn, and written after it, in threads.
        """
        writing: deque[Future[dict[str, Any]]] = deque()

        def read(path: Path) -> np.ndarray | None:
            """Read an image; None where its results are there."""
            return None if done.has(path) else read_image(path)

        def write(path: Path, image: np.ndarray, seg: Segmentation) -> dict[str, Any]:
            return done.add(path, outputs.write(path, image, seg))

        files, kept = [path for path in outputs.files if path not in bad], 0
        with ThreadPoolExecutor(self.jobs) as writers:
            try:
                for path, reading in read_ahead(files, read, self.jobs):
                    try:
                        image = reading.result()
                        seg = None if image is None else segment(image, bank, models)
                    except (ValueError, OSError) as error:
                        message = shorten(error)
                        name = "" if message.startswith(str(path)) else f"{path}: "
                        self._note(path, f"{name}{message}", bad)
                        warn(bad[path])
                    else:
                        if image is None or seg is None:
                            kept += path not in done.fresh
                            writing.append(writers.submit(done.describe, path))
                        else:
                            self._report_timings(path, seg)
                            self.explaining.write(image, seg, bank, models, manifest)
                            writing.append(writers.submit(write, path, image, seg))
                    yield path
                    while len(writing) > 2 * self.jobs:
                        results.append(writing.popleft().result())
            finally:
                results += [future.result() for future in writing]
        if kept:
            print(f"{kept} of {len(outputs.files)} images were done already")

    def _report_timings(self, path: Path, seg: Segmentation) -> None:
        if self.models.random_weights:
            stages = ", ".join(f"{stage} {sec:.1f} s" for stage, sec in seg.timings.items())
            report_stage(
                f"{path}: {len(seg.masks)} regions; {stages}; in all", sum(seg.timings.values())
            )

    def _read(self, path: Path, bad: dict[Path, str]) -> np.ndarray | None:
        """Read an image; return None, and note why, if it is bad."""
        try:
            return read_image(path)
        except (ValueError, OSError) as error:
            self._note(path, shorten(error), bad)
            return None

    def _note(self, path: Path, reason: str, bad: dict[Path, str]) -> None:
        if self.stop_on_error:
            raise ValueError(reason)
        bad[path] = reason

    def _end(self, bad: Mapping[Path, str], count: int) -> NoReturn:
        """List the bad images and exit with status 1."""
        unusable = f"{len(bad)} of {count} images could not be used"
        print(f"rimjax: {unusable}: {'; '.join(bad.values())}", file=sys.stderr)
        sys.exit(1)
