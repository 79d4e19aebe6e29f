"""Evaluation on labelled data sets: the metric, the loop over images, and runs that resume."""

from rimjax.evaluation.loop import Evaluation as Evaluation
from rimjax.evaluation.loop import evaluate as evaluate
