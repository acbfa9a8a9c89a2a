"""How much frozen features tell: k nearest neighbours and logistic regression on them, `eqx-vit probe`.

Both have one number to choose, k and the strength of the regularisation. It is the one that does best on the validation
images after fitting the training images; then both are fitted to all of these, and the test images are looked at once.
"""

import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from eqx_vit.layers.config import Size
from eqx_vit.train.frozen import Features, describe_data, keep_features, load_frozen
from eqx_vit.train.progress import ProgressLog

NEIGHBOURS = (1, 5, 10, 20, 50, 100)
TEMPERATURE = 0.07  # of the neighbours' votes, as DINO's evaluation has it (arXiv 2104.14294, appendix)
INVERSE_STRENGTHS = tuple(10.0**power for power in range(-4, 3))  # scikit-learn's C


class Result(NamedTuple):
    """The accuracy (0 to 1) on the test images, and the number that the validation images chose."""

    accuracy: float
    chosen: float


def probe(
    place: Path,
    checkpoint: str,
    data_folder: str | None,
    *,
    pretrained: str | None = None,
    image_size: Size | None = None,
    output: Path | None = None,
    batch_size: int = 32,
    workers: int = 0,
) -> str:
    """A report on the features of a run's model, or a preset's, for a folder of images (None: a run's own, or digits).

    **Raises:** `ValueError` as `load_frozen` and `keep_features` do; `ImportError` without scikit-learn.
    """
    with ProgressLog() as log:
        frozen = load_frozen(place, checkpoint, data_folder, pretrained, image_size, log)
        name = place.resolve().name if place.exists() else str(place)
        features, path, kept = keep_features(frozen, name, output, batch_size, workers, log)
    neighbours, linear = classify_by_neighbours(features), classify_by_regression(features)
    counts = (len(features.train), len(features.validation), len(features.test))
    return "\n".join(
        [
            f"{place}, {features.features.shape[1]} features of {' x '.join(map(str, frozen.size))} pixels, on "
            f"{describe_data(data_folder, frozen.data)}: "
            "{:,} training, {:,} validation and {:,} test images".format(*counts),
            f"  k-NN                 test accuracy {neighbours.accuracy:.2%} (k = {neighbours.chosen:g})",
            f"  logistic regression  test accuracy {linear.accuracy:.2%} (C = {linear.chosen:g})",
            f"the features {'were' if kept else 'are now'} in {path}",
        ]
    )


def classify_by_neighbours(given: Features) -> Result:
    """k nearest neighbours by the cosine of the features, whose votes weigh `exp(cosine / 0.07)`."""
    lengths = np.linalg.norm(given.features, axis=1, keepdims=True)
    unit = given.features / np.maximum(lengths, np.finfo(np.float32).tiny)
    fitted = np.concatenate([given.train, given.validation])

    def accuracies(
        known: Int[np.ndarray, " known"], asked: Int[np.ndarray, " asked"], counts: list[int]
    ) -> list[float]:
        cosines, nearest = _find_nearest(unit[known], unit[asked], max(counts))
        votes = [_vote(cosines[:, :k], given.labels[known][nearest[:, :k]]) for k in counts]
        return [float(np.mean(vote == given.labels[asked])) for vote in votes]

    counts = [k for k in NEIGHBOURS if k <= len(given.train)]
    k = counts[int(np.argmax(accuracies(given.train, given.validation, counts)))]
    return Result(accuracies(fitted, given.test, [k])[0], k)


def _find_nearest(
    known: Float[np.ndarray, "known width"], asked: Float[np.ndarray, "asked width"], count: int
) -> tuple[Float[np.ndarray, "asked count"], Int[np.ndarray, "asked count"]]:
    """(cosines, indices) of the nearest rows of `known`, the nearest first."""
    from sklearn.neighbors import NearestNeighbors

    distances, indices = (
        NearestNeighbors(n_neighbors=count, metric="cosine", algorithm="brute").fit(known).kneighbors(asked)
    )
    return 1 - distances, indices


def _vote(cosines: Float[np.ndarray, "asked k"], labels: Int[np.ndarray, "asked k"]) -> Int[np.ndarray, " asked"]:
    """The label with the heaviest votes, for each row."""
    votes = np.zeros((len(labels), int(labels.max()) + 1))
    np.add.at(votes, (np.arange(len(labels))[:, None], labels), np.exp((cosines - 1) / TEMPERATURE))
    return votes.argmax(axis=1)


def classify_by_regression(given: Features) -> Result:
    """Multinomial logistic regression on the features, scaled to mean 0 and deviation 1 where it is fitted."""
    fitted = np.concatenate([given.train, given.validation])
    validated = [_fit_and_score(given, given.train, given.validation, c) for c in INVERSE_STRENGTHS]
    chosen = INVERSE_STRENGTHS[int(np.argmax(validated))]
    return Result(_fit_and_score(given, fitted, given.test, chosen), chosen)


def _fit_and_score(
    given: Features, known: Int[np.ndarray, " known"], asked: Int[np.ndarray, " asked"], inverse_strength: float
) -> float:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=inverse_strength, max_iter=1000))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # with little regularisation, it matters least
        classifier.fit(given.features[known], given.labels[known])
    return float(classifier.score(given.features[asked], given.labels[asked]))
