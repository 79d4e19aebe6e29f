"""Write a report of the `rimjax` configuration: classes, confusions, images, references.

Command:  python experiments/report.py
              mini, Fashion Scenes; 2 CPU cores, under 1 minute after table1.py
          python experiments/report.py --preset paper --dataset voc --data data
              likewise context, coco-object; a GPU

report.html opens in any browser, offline.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

from harness import Experiment, start

from rimjax.commands.console import describe_origin, show_class_progress, write_labels
from rimjax.commands.report import write_report
from rimjax.datasets.dataset import read_labels
from rimjax.evaluation.run_folder import REPORT, ImageResult
from rimjax.references.build import assemble_bank, build_references
from rimjax.show.report.contents import Contents, Labelled, read_references


def main(experiment: Experiment) -> None:
    models, dataset = experiment.load_models("rimjax"), experiment.dataset
    manifest, references = build_references(
        dataset.prompts,
        models,
        cache_dir=experiment.cache_dir,
        progress=show_class_progress,
    )
    bank = assemble_bank(references, models.references, models.features)
    items, results = {item.id: item for item in experiment.items}, {}
    load, rows = experiment.open_regions(models), {"": (bank, models.segmentation)}
    with TemporaryDirectory() as folder:
        for outcome in experiment.evaluate_images(load, rows, experiment.items):
            name, seg = outcome.item.id, outcome.segmentations[""]
            write_labels(Path(folder) / f"{name}.png", seg.labels)
            results[name] = ImageResult.from_confusion(name, outcome.confusions[""], seg.timings)

        def read(name: str) -> Labelled:
            return Labelled(*items[name].read(), read_labels(Path(folder) / f"{name}.png"))

        description = {
            "dataset": dataset.name,
            "classes": dataset.classes,
            "background": dataset.background,
            "sources": {"bank": str(manifest.path.absolute())},
            **describe_origin(models),
        }
        contents = Contents(description, results, read, read_references(manifest))
        write_report(contents, experiment.folder / REPORT)


if __name__ == "__main__":
    start(main, Experiment, __doc__, dataset="voc")
