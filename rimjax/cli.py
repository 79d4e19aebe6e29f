"""The command line: `rimjax demo | segment | bank | evaluate | convert-coco | weights | doctor | bench`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from PIL import Image
from tqdm import tqdm

from rimjax import bank as storage
from rimjax import draw
from rimjax.choices import PRESETS
from rimjax.cli_bank import Bank
from rimjax.cli_bench import Bench
from rimjax.cli_evaluate import ConvertCoco, Evaluate, table
from rimjax.cli_weights import Weights
from rimjax.console import ModelOptions, check_outputs, compile_cache, one_line, progress, provenance, self_test, versions, write
from rimjax.datasets import load
from rimjax.evaluate import evaluate
from rimjax.images import read_image
from rimjax.inference import check_bank, segment
from rimjax.presets import inventory
from rimjax.references import build_bank, build_manifest, check_names, load_bank
from rimjax.types import Segmentation

MISSING = 'missing: pip install "rimjax[pipeline]"'


@dataclass(frozen=True, kw_only=True)
class Demo(ModelOptions):
    """Run the whole method on real photographs: draw the 10 Fashion classes, build their bank, segment scenes, score them.

    Example: rimjax demo --scenes 20 --output demo-output
    """

    scenes: int = 40
    """How many of the 200 benchmark scenes."""
    output: Path = Path("demo-output")
    """Folder for results.json and the pictures; its `cache` subfolder keeps the bank for the next run."""

    def run(self) -> None:
        dataset = load("fashion-scenes")
        if not 1 <= self.scenes <= dataset.size:
            raise ValueError(f"--scenes: expected 1 to {dataset.size}, got {self.scenes}")
        models = self.load()
        compile_cache(self.output / "cache")
        manifest = build_manifest(dataset.classes, models, cache_dir=self.output / "cache", progress=progress)
        bank = load_bank(manifest)
        kept: list[Segmentation] = []
        pairs = list(dataset.scenes(self.scenes))
        found = evaluate(tqdm(pairs, desc="segment", unit="scene"), bank, models, keep=kept)
        pictures = [draw.comparison(image, {"rimjax": seg}, truth) for (image, truth), seg in zip(pairs, kept, strict=True)]
        for index, picture in enumerate(pictures[:12]):
            write(self.output / f"scene-{index:02d}.png", picture)
        write(self.output / "scenes.png", draw.grid(pictures[:8], 2))
        sheets = [draw.contact_sheet(shard, 8) for shard in storage.read_shards(manifest, pictures=True)]
        write(self.output / "references.png", draw.grid(sheets, 1))
        write(self.output / "results.json", json.dumps({**found.as_json(), **provenance(models)}, indent=1))
        print(table(found))
        print(f"look at {self.output}/scenes.png (image, segmentation, truth) and {self.output}/references.png; {self.output}/results.json")


@dataclass(frozen=True, kw_only=True)
class Segment(ModelOptions):
    """Segment images into the classes you name.

    Example: rimjax segment photo.jpg --classes "sneaker,bag" --output out.png --json out.json
    """

    files: tyro.conf.Positional[tuple[Path, ...]]
    """Image files."""
    classes: str | None = None
    """Class names, comma-separated. With --bank they may be left out."""
    bank: Path | None = None
    """A bank's manifest, as printed by `rimjax bank build`, instead of building one. Its T and whitening stay as they were built, unless
    --configuration is given."""
    output: Path | None = None
    """The overlay's PNG file, or a folder (a name without a suffix). Default: NAME_segmented.png here; beside it goes NAME_labels.png."""
    json: Path | None = None
    """Write regions, scores and timings to this file."""
    cache_dir: Path | None = None
    """Where banks are kept (default: the user's cache folder)."""

    def run(self) -> None:
        if not self.files:
            raise ValueError("segment: expected at least one image file")
        stems = [path.stem for path in self.files]
        if len(set(stems)) < len(stems):
            raise ValueError("segment: two images have the same name; their results would overwrite each other")
        names = check_names(self.classes.split(",")) if self.classes is not None else None
        if names is None and self.bank is None:
            raise ValueError('segment: say --classes "sneaker,bag", or --bank PATH')
        targets = [self._target(path) for path in self.files]
        labelled = [path.with_name(f"{path.stem.removesuffix('_segmented')}_labels.png") for path in targets]
        check_outputs(*targets, *labelled, self.json)
        if written := {path.resolve() for path in self.files} & {path.resolve() for path in (*targets, *labelled)}:
            raise ValueError(f"--output: {', '.join(map(str, written))} is one of the images; choose another name")
        pictures = [read_image(path) for path in self.files]
        models = self.load()
        compile_cache(storage.cache_folder(self.cache_dir))
        if self.bank is not None:
            manifest = storage.read_manifest(self.bank)
            bank = load_bank(manifest, self.bank_settings(manifest, models))
            check_bank(bank, models)
            if names is not None and names != bank.names[1:]:
                raise ValueError(f"--classes: {', '.join(names)} isn't the bank's list, {', '.join(bank.names[1:])}; leave --classes out")
        else:
            assert names is not None
            bank = build_bank(names, models, cache_dir=self.cache_dir, progress=progress)
        results = []
        progressed = tqdm(pictures, desc="segment", unit="image")
        for path, picture, target, labels in zip(self.files, progressed, targets, labelled, strict=True):
            try:
                seg = segment(picture, bank, models)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
            if self.random_weights:
                stages = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in seg.timings.items())
                self_test(f"{path}: {len(seg.masks)} regions; {stages}; in all", sum(seg.timings.values()))
            write(target, draw.overlay(picture, seg))
            write(labels, Image.fromarray(seg.labels))
            shares = {name: float((seg.labels == index).mean()) for index, name in enumerate(seg.names)}
            results.append({"image": str(path), "overlay": str(target), "labels": str(labels), "shares": shares, **_regions(seg)})
            found = ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items() if share)
            tqdm.write(f"{path}: {found} -> {target}, {labels}")
        if self.json is not None:
            write(self.json, json.dumps({"results": results, "names": bank.names, **provenance(models)}, indent=1))

    def _target(self, image: Path) -> Path:
        if self.output is None:
            return Path(f"{image.stem}_segmented.png")
        if self.output.is_dir() or not self.output.suffix:
            return self.output / f"{image.stem}_segmented.png"
        if len(self.files) > 1:
            raise ValueError(f"--output: for {len(self.files)} images expected a folder, got {self.output}")
        if self.output.suffix.lower() != ".png":
            raise ValueError(f"--output: overlays are written as PNG, got {self.output}")
        return self.output


def _regions(seg: Segmentation) -> dict[str, Any]:
    """A segmentation's regions for JSON: class, score, area in pixels and box xyxy."""
    regions = []
    for mask, index, scores in zip(seg.masks, seg.region_labels, seg.scores, strict=True):
        if index >= 0:
            rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
            box = [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]
            regions.append({"class": seg.names[index], "score": float(scores[index]), "area": int(mask.sum()), "box": box})
    return {"regions": regions, "timings": seg.timings}


@dataclass(frozen=True)
class Doctor:
    """Versions, devices, weights: what is here, what is missing and how to get it.

    Example: rimjax doctor --json doctor.json
    """

    json: Path | None = None
    """Write the report to this file too."""

    def run(self) -> None:
        import jax

        report = {
            "python": sys.version.split()[0],
            "versions": versions(),
            "devices": [f"{device.platform}: {device.device_kind}" for device in jax.devices()],
            "weights": {preset: [asdict(item) for item in inventory(preset)] for preset in PRESETS},
        }
        print(f"python {report['python']}; JAX devices: {', '.join(report['devices'])}")
        for package, version in report["versions"].items():
            print(f"  {package:<18} {version or MISSING}")
        for preset in PRESETS:
            for item in inventory(preset):
                print(f"  {preset:<6} {item.stage:<10} {item.state:<8} {item.path}" + (f"\n{'':<20}{item.remedy}" if item.remedy else ""))
        if self.json is not None:
            write(self.json, json.dumps(report, indent=1))


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


def main() -> None:
    """Entry point: bad input is one clear line on standard error and exit status 2."""
    description = "Training-free open-vocabulary segmentation: RIM in JAX. `rimjax demo` shows the whole method."
    command = tyro.cli(
        Command, prog="rimjax", description=description, config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes)
    )
    try:
        command.run()
    except (ValueError, OSError, ImportError) as error:
        print(f"rimjax: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
