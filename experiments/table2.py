"""Table 2 of the paper: the gain of image references, masks, relation-aware matching and T = 8.

Command:  python experiments/table2.py
              mini, Fashion Scenes; 2 CPU cores, about 2 minutes with the bank
          python experiments/table2.py --preset paper --data data
              COCO Object, 5,000 images; a GPU

Paper: 26.7, 38.7, 41.8, 43.1, 44.5
"""

import numpy as np
from harness import Experiment, start
from tables import Row
from text_regions import open_text_regions

from rimjax.presets import load_image_text
from rimjax.presets.catalogue import PRESETS
from rimjax.settings import CONFIGURATIONS, SegmentSettings
from rimjax.types import BACKGROUND, ReferenceBank

COSINE = SegmentSettings(similarity="cosine")
RELATION = CONFIGURATIONS["printed"].segmentation


def main(experiment: Experiment) -> None:
    models = experiment.load_models()
    clip = load_image_text(experiment.preset, experiment.weights_dir)
    names = (BACKGROUND, *experiment.dataset.classes)
    words = PRESETS[experiment.preset].image_text
    prompts = (words.background, *experiment.dataset.prompts)
    texts = clip.embed_texts([words.template.format(prompt) for prompt in prompts])
    text_bank = ReferenceBank.create(texts, np.arange(len(texts)), texts, names)
    text_regions = open_text_regions(experiment, models, clip)
    evaluations = experiment.evaluate(text_regions, {"1": (text_bank, COSINE)})
    ours = experiment.load_models("rimjax")  # other settings, the same regions
    evaluations |= experiment.evaluate(
        experiment.open_regions(models),
        {
            "2": (
                experiment.build_bank(models, num_subcategories=1, foreground_mask=False),
                COSINE,
            ),
            **experiment.build_cosine_rows(models),
            "4": (experiment.build_bank(models, num_subcategories=1), RELATION),
            "5": (experiment.build_bank(models), RELATION),
            "rimjax": (experiment.build_bank(ours), ours.segmentation),
        },
    )
    rows = [
        Row("1  text references, CLIP, cosine", "26.7", evaluations["1"]),
        Row("2  image references, no mask, cosine", "38.7", evaluations["2"]),
        Row("3  foreground mask, cosine", "41.8", evaluations["plain cosine, T = 1"]),
        Row("   the same, sub-categories", "", evaluations["plain cosine, T = 8"]),
        Row("4  foreground mask, relation-aware", "43.1", evaluations["4"]),
        Row("5  the same, sub-categories", "44.5", evaluations["5"]),
        Row("   the rimjax configuration", "", evaluations["rimjax"]),
    ]
    experiment.write_table(
        "table2",
        rows,
        {"row 2": evaluations["2"], "row 3": evaluations["plain cosine, T = 1"]},
        models,
    )


if __name__ == "__main__":
    start(main, Experiment, __doc__)
