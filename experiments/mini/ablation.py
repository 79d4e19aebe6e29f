"""mIoU of the mini preset's rows: the paper's Table 2 (rows 2 to 5) and `candidates="agents"`, each with a bootstrap 95 % interval.

Command:  python experiments/mini/ablation.py                     on the benchmark's 200 scenes; about 3 minutes on 2 CPU cores
          python experiments/mini/ablation.py --validation        on 200 scenes of training-split photographs, to choose settings by
Regions are proposed, encoded and pooled once; the rows share them.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

import rimjax
from rimjax.bank import read_shards
from rimjax.datasets import fashion_scenes, load
from rimjax.evaluate import Evaluation
from rimjax.inference import describe, label
from rimjax.metrics import confusion_matrix
from rimjax.references import bank_from_shards, build_manifest

PAPER = {"score_map": "clip", "candidates": "all"}
ROWS = {
    "no mask, cosine (row 2)": ({"foreground_mask": False, "num_subcategories": 1}, {"similarity": "cosine"}),
    "mask, cosine (row 3)": ({"num_subcategories": 1}, {"similarity": "cosine"}),
    "mask, cosine, T=8": ({"num_subcategories": 8}, {"similarity": "cosine"}),
    "relation-aware, T=1 (row 4)": ({"num_subcategories": 1}, PAPER),
    "relation-aware, T=8 (row 5)": ({"num_subcategories": 8}, PAPER),
    "row 4, candidates=agents": ({"num_subcategories": 1}, {**PAPER, "candidates": "agents"}),
    "row 5, candidates=agents": ({"num_subcategories": 8}, {**PAPER, "candidates": "agents"}),
    "the preset's own": ({}, {}),
}


def validation(data: Path, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Scenes of the 5,000 training-split photographs that the ViT and Sam never saw."""
    photos, classes = (part[-5_000:] for part in fashion_scenes.read_idx("train", data))
    for index in range(count):
        scene = fashion_scenes.random_scene(np.random.default_rng((77, index)), photos, classes)
        yield scene.image, scene.labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--validation", action="store_true", help="scenes of training-split photographs instead of the benchmark's")
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--data", type=Path, default=fashion_scenes.DEBIAN_ROOT)
    parser.add_argument("--cache-dir", type=Path, default=None)
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()

    models = rimjax.load_preset("mini")
    shards = read_shards(build_manifest(fashion_scenes.CLASSES, models, cache_dir=options.cache_dir, progress=tqdm))
    pairs = validation(options.data, options.scenes) if options.validation else load("fashion-scenes").scenes(options.scenes)
    scenes = [(describe(image, models), truth) for image, truth in tqdm(pairs, total=options.scenes, desc="regions")]
    rows = {}
    for name, (drawing, matching) in ROWS.items():
        bank = bank_from_shards(shards, replace(models.references, **drawing), models.encoder.fingerprint)
        settings = replace(models.segmentation, **matching)
        found = [label(regions, bank, settings) for regions, _ in scenes]
        confusions = [confusion_matrix(truth, seg.labels, len(bank.names)) for seg, (_, truth) in zip(found, scenes, strict=True)]
        rows[name] = Evaluation(bank.names, np.stack(confusions), found[0].timings)
        low, high = rows[name].interval()
        print(f"{name:<30} {100 * rows[name].miou:5.1f}   ({100 * low:.1f} to {100 * high:.1f})", flush=True)
    if options.json:
        options.json.write_text(json.dumps({name: row.as_json() for name, row in rows.items()}, indent=1))


if __name__ == "__main__":
    main()
