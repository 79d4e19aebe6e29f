"""Public name of `rimjax.evaluation`: `from rimjax.evaluate import evaluate`."""

from rimjax.evaluation.loop import Evaluation as Evaluation
from rimjax.evaluation.loop import evaluate as evaluate
