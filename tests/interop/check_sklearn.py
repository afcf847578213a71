"""scikit-learn on a joblib backend whose pool is polyproc's (the alias is active): same scores as sequentially."""

import joblib
import numpy
import pytest
from sklearn.datasets import make_classification
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import GridSearchCV, cross_val_score

DATA = make_classification(n_samples=600, n_features=20, random_state=1)


def scores(model):
    return cross_val_score(model, *DATA, cv=4, n_jobs=2)


def forest_scores():
    return scores(RandomForestClassifier(n_estimators=30, n_jobs=1, random_state=1))


def grid_scores():
    grid = GridSearchCV(
        RandomForestClassifier(random_state=1), {"n_estimators": [5, 20], "max_depth": [2, 4]}, cv=3, n_jobs=2
    )
    return grid.fit(*DATA).cv_results_["mean_test_score"]


@pytest.mark.parametrize("work", [forest_scores, grid_scores])
def test_same_scores(work):
    with joblib.parallel_config(backend="sequential"):
        sequential = work()
    with joblib.parallel_config(backend="multiprocessing"):
        parallel = work()
    numpy.testing.assert_allclose(parallel, sequential)


def test_large_arrays_are_memory_mapped():
    array = numpy.arange(3_000_000, dtype=float)
    with joblib.parallel_config(backend="multiprocessing", max_nbytes="1M"):
        kinds = joblib.Parallel(n_jobs=2)(joblib.delayed(kind)(array) for _ in range(4))
    assert {k for k, _ in kinds} == {"memmap"}
    assert {total for _, total in kinds} == {array.sum()}


def kind(array):
    return type(array).__name__, float(array.sum())
