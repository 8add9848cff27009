"""What an answer means, by a hand-made table; and the scores of MME, MMBench and POPE by hand."""

import numpy as np
import pytest

from xsam.metrics.choice import ChoiceScore, chosen

COLOURS = {"A": "blue square", "B": "a red circle", "C": "Not visible", "D": "3.5"}
LABELS = {"A": "B", "B": "A", "C": "same", "D": "Same."}  # as in diagrams: options are letters, or alike


@pytest.mark.parametrize(
    "answer, expected",
    [
        *((text, "B") for text in ("B", "b", " B\n", "B.", "(B)", "b)", "(b).", "[B]", "B:", "**B**", '"B"')),
        *((text, "B") for text in ("B. red circle", "B red circle", "(B) A red circle.", "B: a Red Circle", "B\nred circle")),
        *((text, "B") for text in ("The answer is B", "the correct answer is (b).", "Answer: B", "Option B", "It is B.")),
        *((text, "B") for text in ("My answer is: option B", "The best choice is B. A red circle")),
        *((text, "B") for text in ("a red circle", "Red circle.", "The red circle", "It is a red circle.", "A red circle")),
        *((text, "B") for text in ("B, since it is round", "B. A circle is round.", "B\nIt is round", "b) It is round")),
        ("not visible", "C"),
        ("3.5", "D"),
        ("A blue square", "A"),
        ("A", "A"),
        ("a", "A"),
        # neither
        *((text, "") for text in ("", " ", "?", "E", "(F)", "green", "circle", "35", "Because", "Bad", "None", "I think B")),
        # not clear
        *((text, "") for text in ("A or B", "B or C", "B, C", "B/C", "(B) or (C)", "B. C.", "B, not A", "A and B are right")),
        *((text, "") for text in ("B. blue square", "B blue square", "blue square or red circle", "A red square")),
    ],
)  # fmt: skip
def test_the_option_of_an_answer(answer, expected):
    assert chosen(answer, COLOURS) == expected


@pytest.mark.parametrize(
    "answer, expected",
    [("B", "B"), ("A.", "A"), ("(B) A", "B"), ("B. B", ""), ("same", ""), ("C. same", "C"), ("C", "C"), ("D)", "D")],
)
def test_a_letter_alone_is_never_a_text(answer, expected):
    assert chosen(answer, LABELS) == expected


@pytest.mark.parametrize(
    "answer, expected",
    [
        *((text, "yes") for text in ("Yes", "yes.", "YES!", "Yes, there is a dog", "The answer is yes", "**Yes**")),
        *((text, "no") for text in ("No", "no.", "No, there is not", "There is no dog")),
        *((text, "") for text in ("", "maybe", "yes or no", "Yes. No.", "not", "nothing", "yesterday", "A")),
    ],
)
def test_yes_and_no(answer, expected):
    assert chosen(answer, {}) == expected


def count(metric, *rows):
    for category, group, answer, expected in rows:
        metric.update(category.split(","), group, answer, expected)
    return metric


def test_accuracy_of_all_and_by_category():
    metric = ChoiceScore()
    assert metric.compute() == {"accuracy": None}
    assert metric.headline() is None
    count(metric, ("x", "1", "A", "A"), ("x", "1", "B", "A"), ("x", "2", "", "C"), ("y", "1", "D", "D"))
    assert metric.compute() == {"accuracy": 50}
    assert metric.headline() == 50
    assert metric.per_category() == {"x": {"accuracy": pytest.approx(100 / 3)}, "y": {"accuracy": 100}}
    assert count(ChoiceScore(), ("", "1", "A", "A")).per_category() == {}  # of no category


def test_mme_sums_accuracy_and_paired_accuracy():
    sums = {"perception": ("count", "color", "scene"), "cognition": ("code",)}
    metric = count(
        ChoiceScore(sums=sums),
        ("count", "1", "yes", "yes"), ("count", "1", "no", "no"),  # a pair that is right
        ("count", "2", "yes", "yes"), ("count", "2", "yes", "no"),
        ("color", "1", "no", "yes"), ("color", "1", "no", "no"),  # the same image in another category
    )  # fmt: skip
    # count: 3 of 4 questions and 1 of 2 pairs, 75 + 50; color: 1 of 2 and 0 of 1, 50 + 0
    assert metric.compute() == {"perception": 175, "cognition": None}
    assert metric.per_category()["count"] == {"accuracy": 75, "accuracy+": 50}
    assert metric.headline() == pytest.approx(400 / 6)
    metric.merge(count(ChoiceScore(sums=sums), ("code", "9", "yes", "yes"), ("code", "9", "no", "no")))
    assert metric.compute() == {"perception": 175, "cognition": 200}


def test_a_question_counts_circularly_if_all_its_rotations_are_right():
    parts = [
        count(ChoiceScore("circular"), ("x", "1", answer, expected))
        for answer, expected in (("A", "A"), ("B", "B"), ("C", "C"))
    ]
    parts += [count(ChoiceScore("circular"), ("x", "2", "A", "A"), ("x", "2", "A", "B"), ("y", "3", "B", "B"))]
    metric = ChoiceScore("circular")
    for part in parts:  # one after the other, as an evaluation merges samples
        metric.merge(part)
    assert metric.compute() == {"accuracy": pytest.approx(200 / 3)}
    assert metric.per_category() == {"x": {"accuracy": 50}, "y": {"accuracy": 100}}
    assert [part.headline() for part in parts] == [100, 100, 100, pytest.approx(200 / 3)]


def test_pope_f1_counts_a_question_in_each_of_its_categories():
    metric = count(
        ChoiceScore("F1"),
        ("random,popular,adversarial", "1", "yes", "yes"),
        ("random,popular", "1", "yes", "no"),
        ("adversarial", "2", "no", "no"),
        ("adversarial", "2", "", "no"),  # not clear: a wrong yes
        ("adversarial", "2", "", "yes"),  # a missed yes
    )
    # of 8: 3 found, 3 wrong yes, 1 missed, 1 right no
    assert metric.compute() == {"F1": 60, "accuracy": 50}
    assert metric.per_category() == {
        "random": {"F1": pytest.approx(200 / 3), "accuracy": 50},
        "popular": {"F1": pytest.approx(200 / 3), "accuracy": 50},
        "adversarial": {"F1": 50, "accuracy": 50},  # 1 found, 1 wrong yes, 1 missed
    }
    assert count(ChoiceScore("F1"), ("x", "1", "no", "no")).compute() == {"F1": None, "accuracy": 100}


def test_images_are_resampled_with_their_groups():
    sums = {"perception": ("count",)}
    good = count(ChoiceScore(sums=sums), ("count", "1", "yes", "yes"), ("count", "1", "no", "no"))
    half = count(ChoiceScore(sums=sums), ("count", "2", "yes", "yes"), ("count", "2", "yes", "no"))
    other = count(ChoiceScore(sums=sums), ("color", "3", "yes", "no"))
    weights = np.array([[1, 1, 1], [3, 1, 0], [0, 2, 0], [0, 0, 3]])
    replicates = ChoiceScore.resample([good, half, other], weights)
    assert replicates == [{"perception": score} for score in (125, 7 / 8 * 100 + 75, 50, None)]
    pope = [count(ChoiceScore("F1"), ("x", "1", *row)) for row in (("yes", "yes"), ("yes", "no"))]
    assert ChoiceScore.resample(pope, np.array([[2, 0], [1, 1], [2, 2]])) == [
        {"F1": 100, "accuracy": 100}, *[{"F1": pytest.approx(200 / 3), "accuracy": 50}] * 2,
    ]  # fmt: skip
