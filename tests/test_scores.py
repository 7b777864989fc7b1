"""The numbers of a report, compared with second implementations and published figures."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from report.scores import calibration, confusion_matrix, mistakes, wilson

digit = st.integers(0, 9)
# Multiples of 1/15 are the bins' edges.
probability = st.one_of(st.floats(1e-9, 1.0), st.integers(1, 15).map(lambda m: m / 15))
predicted = st.lists(st.tuples(digit, digit, probability), min_size=1, max_size=60)


def ece_by_loops(confidence: list[float], correct: list[bool], bins: int) -> float:
    error = 0.0
    for m in range(1, bins + 1):
        inside = [i for i, p in enumerate(confidence) if (m - 1) / bins < p <= m / bins]
        if inside:
            accuracy = sum(correct[i] for i in inside) / len(inside)
            mean = sum(confidence[i] for i in inside) / len(inside)
            error += len(inside) / len(confidence) * abs(accuracy - mean)
    return error


def test_calibration_by_hand() -> None:
    # Two bins. (0, .5] holds .4 and .5: mean .45, right half the time. (.5, 1] holds .8, .9 and 1: mean .9,
    # right once in three. So 2/5 of .05 and 3/5 of .9 - 1/3.
    confidence = torch.tensor([0.4, 0.5, 0.8, 0.9, 1.0], dtype=torch.float64)
    measured = calibration(confidence, torch.tensor([True, False, False, True, False]), bins=2)
    assert measured.error == pytest.approx(0.4 * 0.05 + 0.6 * (0.9 - 1 / 3))
    assert measured.total.tolist() == [2, 3]
    assert measured.correct.tolist() == [1, 1]
    assert measured.confidence.tolist() == pytest.approx([0.45, 0.9])


def test_empty_bins_have_no_confidence() -> None:
    measured = calibration(torch.ones(4, dtype=torch.float64), torch.zeros(4, dtype=torch.bool))
    assert measured.error == 1
    assert measured.total.tolist() == [0] * 14 + [4]
    assert measured.confidence[:14].isnan().all()


@settings(max_examples=40, deadline=None)
@given(predicted, st.sampled_from([1, 2, 10, 15]))
def test_calibration_error_against_loops(given: list[tuple[int, int, float]], bins: int) -> None:
    correct = [label == prediction for label, prediction, _ in given]
    confidence = [p for _, _, p in given]
    measured = calibration(torch.tensor(confidence, dtype=torch.float64), torch.tensor(correct), bins)
    assert measured.error == pytest.approx(ece_by_loops(confidence, correct, bins), abs=1e-12)
    assert (int(measured.total.sum()), int(measured.correct.sum())) == (len(given), sum(correct))


@settings(max_examples=40, deadline=None)
@given(predicted)
def test_confusion_matrix_and_mistakes_against_loops(given: list[tuple[int, int, float]]) -> None:
    labels, predictions = (torch.tensor([entry[i] for entry in given]) for i in (0, 1))
    confidence = torch.tensor([p for _, _, p in given], dtype=torch.float64)
    pairs = Counter((label, prediction) for label, prediction, _ in given)
    expected = [[pairs[label, prediction] for prediction in range(10)] for label in range(10)]
    assert confusion_matrix(labels, predictions).tolist() == expected
    wrong = [i for i, (label, prediction, _) in enumerate(given) if label != prediction]
    assert mistakes(labels, predictions, confidence).tolist() == sorted(wrong, key=lambda i: -given[i][2])


@pytest.mark.parametrize(  # Newcombe, Statistics in Medicine 17 (1998), table I, method 3
    ("correct", "total", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_against_published_intervals(correct: int, total: int, low: float, high: float) -> None:
    interval = [float(end) for end in wilson(torch.tensor(correct), torch.tensor(total))]
    assert interval == pytest.approx([low, high], abs=5e-5)
