"""`rimjax demo`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from rimjax import datasets
from rimjax.commands.console import (
    check_outputs,
    describe_origin,
    keep_compilations,
    progress,
    show_class_progress,
    write_picture,
)
from rimjax.commands.merge import format_evaluation
from rimjax.commands.options import ModelOptions
from rimjax.commands.report import add_report
from rimjax.evaluation import evaluate
from rimjax.evaluation.metrics import confusion_matrix
from rimjax.evaluation.run_folder import REPORT, ImageResult
from rimjax.files import write_json
from rimjax.references.build import assemble_bank, build_references
from rimjax.references.store import read_all_references
from rimjax.results import Segmentation
from rimjax.show import draw
from rimjax.show.report.contents import Contents, Labelled

PICTURES = 12
"""As many scenes are drawn, at most."""


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Run the whole method: draw ten kinds of clothing, build their bank, segment and score scenes.

    The scenes are cut-out photographs of clothing laid on synthetic grounds.

    Example: rimjax demo --scenes 20 --output demo-output

    Attributes:
        scenes: Number of scenes, up to 200.
        output: Folder for results.json, report.html and the pictures; its subfolder cache keeps the
            bank and the scenes' regions for the next run.
    """

    scenes: int = 40
    output: Path = Path("demo-output")
    models: ModelOptions = field(default_factory=ModelOptions)

    def run(self) -> None:
        dataset = datasets.load("fashion-scenes")
        if not 1 <= self.scenes <= len(dataset.items):
            raise ValueError(f"scenes must be in [1, {len(dataset.items)}], got {self.scenes}")
        scenes = [
            self.output / f"scene-{index:02d}.png" for index in range(min(self.scenes, PICTURES))
        ]
        names = ("scenes.png", "references.png", "results.json", REPORT)
        check_outputs(*scenes, *(self.output / name for name in names))
        items = dataset.items[: self.scenes]
        models, cache = self.models.load(), self.output / "cache"
        keep_compilations(cache)
        manifest, references = build_references(
            dataset.prompts, models, cache_dir=cache, progress=show_class_progress
        )
        bank = assemble_bank(references, models.references, models.features)
        kept: list[Segmentation] = []
        show = partial(progress, description="segment", unit="scene")
        limited = replace(dataset, items=items)
        evaluation = evaluate(limited, bank, models, keep=kept, progress=show, cache_dir=cache)
        pictures = []
        for path, item, seg in zip(scenes, items, kept, strict=False):
            image, truth = item.read()
            pictures.append(draw.comparison(image, {"rimjax": seg}, truth))
            write_picture(path, pictures[-1])
        write_picture(self.output / "scenes.png", draw.grid(pictures[:8], 2))
        stored = read_all_references(manifest, pictures=True)
        sheets = [draw.contact_sheet(group, 8) for group in stored]
        write_picture(self.output / "references.png", draw.grid(sheets, 1))
        origin = describe_origin(models)
        write_json(self.output / "results.json", {**evaluation.as_json(), **origin})
        print(format_evaluation(evaluation))
        print(
            f"look at {self.output}/scenes.png (image, segmentation, truth) and "
            f"{self.output}/references.png; figures: {self.output}/results.json"
        )
        by_id = {item.id: (item, seg) for item, seg in zip(items, kept, strict=True)}

        def read_scene(name: str) -> Labelled:
            item, seg = by_id[name]
            return Labelled(*item.read(), seg.labels)

        results = {
            name: ImageResult.from_confusion(
                name, confusion_matrix(item.labels(), seg.labels, len(bank.names)), seg.timings
            )
            for name, (item, seg) in by_id.items()
        }
        description = {
            "dataset": dataset.name,
            "classes": dataset.classes,
            "background": dataset.background,
            "sources": {"bank": str(manifest.path.absolute())},
            **origin,
        }
        add_report(Contents(description, results, read_scene, stored), self.output / REPORT)
