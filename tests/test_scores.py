"""What a network's answers come to, against second implementations and published figures."""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scores import answers, calibration, confusion_matrix, wilson, wrong_images
from torchvision import transforms

from model import Net

digit = st.integers(0, 9)
# Multiples of 1/15 are the bins' edges.
probability = st.one_of(st.floats(1e-9, 1.0), st.integers(1, 15).map(lambda m: m / 15))
answered = st.lists(st.tuples(digit, digit, probability), min_size=1, max_size=60)


def ece_by_loops(sure: list[float], right: list[bool], bins: int) -> float:
    error = 0.0
    for m in range(1, bins + 1):
        inside = [i for i, p in enumerate(sure) if (m - 1) / bins < p <= m / bins]
        if inside:
            accuracy = sum(right[i] for i in inside) / len(inside)
            confidence = sum(sure[i] for i in inside) / len(inside)
            error += len(inside) / len(sure) * abs(accuracy - confidence)
    return error


def test_calibration_error_by_hand() -> None:
    # Two bins. (0, .5] holds .4 and .5: sure .45, right half the time. (.5, 1] holds .8, .9 and 1: sure .9,
    # right once in three. So 2/5 of .05 and 3/5 of .9 - 1/3.
    sure = torch.tensor([0.4, 0.5, 0.8, 0.9, 1.0], dtype=torch.float64)
    right = torch.tensor([True, False, False, True, False])
    ece, count, hits, confidence = calibration(sure, right, bins=2)
    assert ece == pytest.approx(0.4 * 0.05 + 0.6 * (0.9 - 1 / 3))
    assert count.tolist() == [2, 3]
    assert hits.tolist() == [1, 1]
    assert confidence.tolist() == pytest.approx([0.45, 0.9])


@pytest.mark.parametrize(("right", "expected"), [([True] * 4, 0.0), ([False] * 4, 1.0)])
def test_calibration_error_at_its_ends(right: list[bool], expected: float) -> None:
    ece, count, _, confidence = calibration(torch.ones(4, dtype=torch.float64), torch.tensor(right))
    assert ece == expected
    assert count.tolist() == [0] * 14 + [4]
    assert confidence[:14].isnan().all()


@settings(deadline=None)
@given(answered, st.sampled_from([1, 2, 10, 15]))
def test_calibration_error_against_loops(given: list[tuple[int, int, float]], bins: int) -> None:
    right = [label == said for label, said, _ in given]
    sure = [p for _, _, p in given]
    ece, count, hits, _ = calibration(torch.tensor(sure, dtype=torch.float64), torch.tensor(right), bins)
    assert ece == pytest.approx(ece_by_loops(sure, right, bins), abs=1e-12)
    assert (int(count.sum()), int(hits.sum())) == (len(given), sum(right))


@settings(deadline=None)
@given(answered)
def test_confusion_matrix_against_a_count(given: list[tuple[int, int, float]]) -> None:
    labels, said = (torch.tensor([one[i] for one in given]) for i in (0, 1))
    counts = confusion_matrix(labels, said)
    pairs = Counter((label, answer) for label, answer, _ in given)
    assert counts.tolist() == [[pairs[true, taken] for taken in range(10)] for true in range(10)]
    assert int(counts.sum()) == len(given)
    assert int(counts.trace()) == sum(label == answer for label, answer, _ in given)


@settings(deadline=None)
@given(answered)
def test_wrong_images_against_a_loop(given: list[tuple[int, int, float]]) -> None:
    labels, said = (torch.tensor([one[i] for one in given]) for i in (0, 1))
    sure = torch.tensor([p for _, _, p in given], dtype=torch.float64)
    wrong = [i for i, (label, answer, _) in enumerate(given) if label != answer]
    assert wrong_images(labels, said, sure).tolist() == sorted(wrong, key=lambda i: -given[i][2])


@pytest.mark.parametrize(  # Newcombe, Statistics in Medicine 17 (1998), table I, method 3
    ("right", "total", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_against_published_intervals(right: int, total: int, low: float, high: float) -> None:
    found = [float(end) for end in wilson(torch.tensor(right), torch.tensor(total))]
    assert found == pytest.approx([low, high], abs=5e-5)


def test_answers_against_torchvisions_transforms() -> None:
    torch.manual_seed(0)
    model = Net().eval()
    images = torch.randint(0, 256, (1003, 28, 28), dtype=torch.uint8)  # more than one batch
    said, sure = answers(model, images)
    prepare = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
    for i in (0, 1, 999, 1000, 1002):
        with torch.no_grad():
            logits = model.layers(prepare(Image.fromarray(images[i].numpy())).unsqueeze(0)).flatten()
        probabilities = F.softmax(logits.double(), dim=0)
        assert int(said[i]) == int(probabilities.argmax())
        assert float(sure[i]) == pytest.approx(float(probabilities.max()), rel=1e-5)
    assert sure.dtype == torch.float64 and said.dtype == torch.int64
