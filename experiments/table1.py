"""Table 1 of the paper: the method on every data set, beside the published figures of others.

Command:  python experiments/table1.py
              mini, Fashion Scenes; 2 CPU cores, about 1 minute after table2.py
          python experiments/table1.py --preset paper --data data
              VOC 2012, Context and COCO Object, 11,554 images; a GPU

Paper: RIM 77.8 / 34.3 / 44.5

Nothing is tuned on the benchmarks. The background has a *reference*; there is neither a threshold
nor a word list for it.
"""

from dataclasses import replace

from harness import Experiment, start
from tables import Row

RIM = {"voc": "77.8", "context": "34.3", "coco-object": "44.5"}
OTHERS = {
    "trained on the target: DeiT": "53.0 / 35.9 / -",
    "trained on the target: MoCo": "34.3 / 21.3 / -",
    "trained on the target: DINO": "39.1 / 20.4 / -",
    "zero-shot: ViL-Seg": "33.6 / 15.9 / -",
    "zero-shot: MaskCLIP": "38.8 / 23.6 / 20.6",
    "zero-shot: GroupViT": "52.3 / 22.4 / -",
    "zero-shot: ZeroSeg": "40.8 / 20.4 / 20.2",
    "zero-shot: TCL": "51.2 / 24.3 / 30.4",
    "zero-shot: ViewCo": "52.4 / 23.0 / 23.5",
    "zero-shot: CLIPpy": "52.2 / - / 32.0",
    "zero-shot: SegCLIP": "52.6 / 24.7 / 26.5",
    "zero-shot: OVSegmentor": "53.8 / 20.4 / 25.1",
    "zero-shot: SimSeg": "57.4 / 26.2 / 29.7",
    "training-free: DiffSegmenter": "60.1 / 27.5 / 37.9",
    "training-free: OVDiff": "67.1 / 30.1 / 34.8",
}


def main(experiment: Experiment) -> None:
    if experiment.preset == "paper" and experiment.dataset_name is None:
        names = list(RIM)
    else:
        names = [experiment.dataset_name or "fashion-scenes"]
    reason, models = "published: VOC / Context / COCO Object", None
    rows = [Row(name, paper, reason=reason) for name, paper in OTHERS.items()]
    for dataset in names:
        own = replace(experiment, dataset_name=dataset)
        printed, models = own.load_models(), own.load_models("rimjax")
        setups = {
            f"{dataset}: RIM, as printed": (own.build_bank(printed), printed.segmentation),
            **own.build_cosine_rows(printed, f"{dataset}: "),
            f"{dataset}: RIM, rimjax configuration": (own.build_bank(models), models.segmentation),
        }
        for name, evaluation in own.evaluate(own.open_regions(models), setups).items():
            rows.append(Row(name, RIM.get(dataset, "") if "printed" in name else "", evaluation))
    experiment.write_table("table1", rows, models=models)


if __name__ == "__main__":
    start(main, Experiment, __doc__, dataset=None)
