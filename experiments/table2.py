"""Table 2 of the paper: what image references, foreground masks, relation-aware matching and sub-categories each add.

Command:  python experiments/table2.py                                  mini, Fashion Scenes; 2 CPU cores, about 2 minutes with the bank
          python experiments/table2.py --preset paper --data data       COCO Object, 5,000 images; a GPU
Paper:    26.7, 38.7, 41.8, 43.1, 44.5.
"""

import numpy as np
from harness import Experiment, Row, start

from rimjax.choices import CONFIGURATIONS, PRESETS
from rimjax.inference import SegmentSettings
from rimjax.presets import load_image_text
from rimjax.types import BACKGROUND, ReferenceBank

COSINE = SegmentSettings(similarity="cosine")
RELATION = CONFIGURATIONS["paper"].segmentation


def main(experiment: Experiment) -> None:
    models = experiment.models()
    clip = load_image_text(experiment.preset, experiment.weights_dir)
    names = (BACKGROUND, *experiment.images_of.classes)
    words = PRESETS[experiment.preset].image_text
    texts = clip.embed_texts([words.template.format(name) for name in (words.background, *experiment.images_of.prompts)])
    text_bank = ReferenceBank.create(texts, np.arange(len(texts)), texts, names)
    text_regions = experiment.regions(models.masker, clip.embed_regions, clip.fingerprint)
    found = experiment.evaluate(text_regions, {"1": (text_bank, COSINE)})
    found |= experiment.evaluate(
        experiment.regions_of(models),
        {
            "2": (experiment.bank(models, num_subcategories=1, foreground_mask=False), COSINE),
            "3": (experiment.bank(models, num_subcategories=1), COSINE),
            "4": (experiment.bank(models, num_subcategories=1), RELATION),
            "5": (experiment.bank(models), RELATION),
        },
    )
    rows = [
        Row("1  text references, CLIP, cosine", "26.7", found["1"]),
        Row("2  image references, no mask, cosine", "38.7", found["2"]),
        Row("3  foreground mask, cosine", "41.8", found["3"]),
        Row("4  foreground mask, relation-aware", "43.1", found["4"]),
        Row("5  the same, sub-categories", "44.5", found["5"]),
    ]
    experiment.table("table2", rows, {"row 2": found["2"]}, models)


if __name__ == "__main__":
    start(main, Experiment, __doc__)
