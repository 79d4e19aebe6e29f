"""The scripts that reproduce.py runs, in order, and what each costs."""

from __future__ import annotations

from dataclasses import dataclass

ALL, COCO, VOC = ("voc", "context", "coco-object"), ("coco-object",), ("voc",)


@dataclass(frozen=True)
class Step:
    """A script, and what it costs on the paper preset.

    Attributes:
        name: of the script.
        datasets: that it reads; mini's is always its own.
        encodings: how many encoders and sizes go over the images.
        few: whether it reads the first images only.
    """

    name: str
    datasets: tuple[str, ...]
    encodings: int = 1
    few: bool = False

    @property
    def title(self) -> str:
        """What the page calls it."""
        for prefix, kind in (("table", "Table "), ("fig", "Figure ")):
            if self.name.startswith(prefix):
                return kind + self.name.removeprefix(prefix)
        return self.name.replace("_", " ").capitalize()


STEPS = (
    Step("table2", COCO, encodings=2),
    Step("table1", ALL),
    Step("table3", COCO, encodings=4),
    Step("table4", VOC, encodings=2),
    Step("table5", COCO),
    Step("fig3", VOC, few=True),
    Step("fig4", VOC, few=True),
    Step("fig5", COCO),
    Step("fig6", VOC, encodings=2),
    Step("beyond", COCO, encodings=4),
    Step("ablations", COCO, encodings=11),
    Step("readings", VOC),
    Step("half_precision", COCO, encodings=2),
)
