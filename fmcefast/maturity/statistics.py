"""Statistics of pooled feature maps: rows are images, columns are channels, all in float64."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

# Spectral decay is fitted to the eigenvalues of these ranks, counted from 1.
_FIRST_RANK, _LAST_RANK = 4, 80
_NEIGHBOURS = 5
_FOLDS = 4
_RIDGE = np.logspace(-4, 4, 9)
_MOST_FOR_NEIGHBOURS = 10_000

FEWEST_IMAGES = 16


@contextmanager
def single_threaded() -> Iterator[None]:
    """Linear algebra on one thread: these matrices are small, and beside a busy process threads wait for each other."""
    import sklearn.linear_model  # noqa: F401  (takes seconds; the libraries to be limited must be loaded by now)
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, user_api="blas"):
        yield


def centred_cosines(pooled: np.ndarray, changed: np.ndarray) -> np.ndarray:
    """Cosine (M,) between the maps of an image and of the same image changed, both less the mean map.

    pooled: (N, C), of the images. changed: (M, C), of the first M of them, changed.
    """
    centre = pooled.mean(axis=0)
    plain, moved = pooled[: len(changed)] - centre, changed - centre
    norms = np.linalg.norm(plain, axis=1) * np.linalg.norm(moved, axis=1)
    return np.divide((plain * moved).sum(axis=1), norms, out=np.zeros(len(norms)), where=norms > 0)


def invariance(pooled: np.ndarray, changed: Collection[np.ndarray]) -> np.ndarray:
    """(M,) the mean of `centred_cosines` over several changes of each image."""
    return np.mean([centred_cosines(pooled, each) for each in changed], axis=0)


def eigenvalues(pooled: np.ndarray, *, centred: bool = True) -> np.ndarray:
    """Those of the covariance of `pooled` (N, C) times N, largest first; not `centred`, of its second moments."""
    rows = pooled - pooled.mean(axis=0) if centred else pooled
    gram = rows @ rows.T if len(rows) <= rows.shape[1] else rows.T @ rows
    return np.linalg.eigvalsh(gram)[::-1].clip(min=0)


def effective_rank(values: np.ndarray) -> float:
    """exp of the entropy of the normalised singular values, whose squares are `values` (Roy and Vetterli 2007).

    Of values that are not centred it is RankMe (Garrido et al. 2023).
    """
    singular = np.sqrt(values)
    parts = singular[singular > 0] / singular.sum()
    return float(np.exp(-(parts * np.log(parts)).sum()))


def spectral_decay(values: np.ndarray) -> float | None:
    """The exponent a of eigenvalues that fall as rank^-a, by least squares of the logarithms (alpha-ReQ, Agrawal et al.
    2022), over ranks 4 to 80. None when fewer than 8 are distinct from 0."""
    values = values[values > values[0] * 1e-10][:_LAST_RANK]
    if len(values) < _FIRST_RANK + 4:
        return None
    ranks = np.arange(1, len(values) + 1)
    slope, _ = np.polyfit(np.log(ranks[_FIRST_RANK - 1 :]), np.log(values[_FIRST_RANK - 1 :]), 1)
    return float(-slope)


def neighbour_ratio(pooled: np.ndarray) -> float:
    """Mean distance to the 5 nearest maps over the mean distance of all, (N, C) being at most 10,000 of them."""
    from sklearn.metrics import pairwise_distances_chunked  # takes seconds to import

    centred = pooled - pooled.mean(axis=0)
    near = far = 0.0
    for distances in pairwise_distances_chunked(centred[:_MOST_FOR_NEIGHBOURS]):
        near += np.partition(distances, _NEIGHBOURS, axis=1)[:, : _NEIGHBOURS + 1].sum()  # 0 to itself
        far += distances.sum()
    images = min(len(pooled), _MOST_FOR_NEIGHBOURS)
    return float((near / _NEIGHBOURS) / (far / (images - 1)))


def cka(first: np.ndarray, second: np.ndarray) -> float | None:
    """Linear centred kernel alignment (Kornblith et al. 2019) of maps (N, C) and (N, D) of the same images. None when
    one of them is constant."""
    first, second = first - first.mean(axis=0), second - second.mean(axis=0)
    if len(first) <= min(first.shape[1], second.shape[1]):
        one, other = first @ first.T, second @ second.T
        between, norms = (one * other).sum(), np.linalg.norm(one) * np.linalg.norm(other)
    else:
        between = (np.linalg.norm(first.T @ second)) ** 2
        norms = np.linalg.norm(first.T @ first) * np.linalg.norm(second.T @ second)
    return float(between / norms) if norms > 0 else None


def davies_bouldin(pooled: np.ndarray, labels: np.ndarray) -> float:
    """Similarity of each class to its most similar one (Davies and Bouldin 1979); 0 is best."""
    from sklearn.metrics import davies_bouldin_score

    return float(davies_bouldin_score(pooled / pooled.std(), labels))  # it takes distances below 1e-8 for none


def silhouettes(pooled: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(N,) how much nearer each map lies to those of its class than to those of the nearest other one, -1 to 1
    (Rousseeuw 1987)."""
    from sklearn.metrics import silhouette_samples

    return silhouette_samples(pooled / pooled.std(), labels)


def nc1_trace(pooled: np.ndarray, labels: np.ndarray) -> float | None:
    """Trace of the covariance within classes over that between their means (neural collapse, Papyan et al. 2020).

    None when all means are the same.
    """
    present, members = np.unique(labels, return_inverse=True)
    means = np.stack([pooled[members == number].mean(axis=0) for number in range(len(present))])
    within = ((pooled - means[members]) ** 2).sum() / len(pooled)
    between = ((means - pooled.mean(axis=0)) ** 2).sum() / len(present)
    return float(within / between) if between > 0 else None


def knn_accuracy(pooled: np.ndarray, labels: np.ndarray) -> float:
    """Of the vote of the 5 nearest other images by centred cosine, among at most 10,000 images."""
    from sklearn.neighbors import NearestNeighbors

    pooled, labels = pooled[:_MOST_FOR_NEIGHBOURS], labels[:_MOST_FOR_NEIGHBOURS]
    nearest = NearestNeighbors(n_neighbors=_NEIGHBOURS, metric="cosine").fit(pooled - pooled.mean(axis=0))
    votes = labels[nearest.kneighbors(return_distance=False)]
    counts = np.stack([(votes == label).sum(axis=1) for label in np.unique(labels)], axis=1)
    return float((np.unique(labels)[counts.argmax(axis=1)] == labels).mean())


def ridge_probe_accuracy(pooled: np.ndarray, labels: np.ndarray) -> float:
    """Of a linear classifier on held-out quarters of the images; the other three choose its ridge penalty."""
    from sklearn.linear_model import RidgeClassifierCV
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=0)
    probe = make_pipeline(StandardScaler(), RidgeClassifierCV(alphas=_RIDGE))
    return float((cross_val_predict(probe, pooled, labels, cv=folds) == labels).mean())


def label_free(pooled: np.ndarray, changed: Collection[np.ndarray]) -> dict[str, float | None]:
    """Those of maps made with batch statistics taken anew. Arguments as for `invariance`."""
    values = eigenvalues(pooled)
    return {
        "bn_inv_ccos": float(invariance(pooled, changed).mean()),
        "bn_areq_pool": spectral_decay(values),
        "bn_erank_pool": effective_rank(values),
        "bn_nn_ratio": neighbour_ratio(pooled),
    }


def of_rivals(pooled: np.ndarray) -> dict[str, float | None]:
    """RankMe and alpha-ReQ as published: of maps made in evaluation mode."""
    return {
        "rankme": effective_rank(eigenvalues(pooled, centred=False)),
        "alpha_req": spectral_decay(eigenvalues(pooled)),
    }


def with_labels(pooled: np.ndarray, labels: np.ndarray) -> dict[str, float | None]:
    """Those that look at the classes, labels (N,) int64, too."""
    return {
        "silhouette": float(silhouettes(pooled, labels).mean()),
        "davies_bouldin": davies_bouldin(pooled, labels),
        "nc1_trace": nc1_trace(pooled, labels),
        "knn": knn_accuracy(pooled, labels),
        "ridge_probe": ridge_probe_accuracy(pooled, labels),
    }


LABEL_FREE = ("bn_inv_ccos", "bn_areq_pool", "bn_erank_pool", "bn_nn_ratio")
RIVALS = ("rankme", "alpha_req")
WITH_LABELS = ("silhouette", "davies_bouldin", "nc1_trace", "knn", "ridge_probe")


def lacking_labels(labels: np.ndarray, classes: Sequence[str] | None = None) -> str | None:
    """Why these labels do not serve statistics, or None: at least two classes of four images each are needed."""
    present, counts = np.unique(labels, return_counts=True)
    if len(present) < 2:
        return "the images are of one class"
    if counts.min() < _FOLDS:
        label = int(present[counts.argmin()])
        name = classes[label] if classes else label
        return f"class {name} has {counts.min()} images, and each needs at least {_FOLDS}"
    return None
