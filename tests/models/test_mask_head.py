"""Scores of queries against conditions."""

import torch

from xsam.models.mask_head import ConditionClassifier


def test_cosines_times_the_scale_with_and_without_a_background():
    states = torch.tensor([3.0, 4.0]).view(1, 1, 1, 2)  # length 5
    conditions, valid = torch.tensor([[[2.0, 0.0], [0.0, 7.0]]]), torch.tensor([[True, False]])
    for background, expected in ((True, 0.8), (False, 0.0)):
        classifier = ConditionClassifier(2, background)
        if background:
            classifier.background.data = torch.tensor([[0.0, 1.0]])
        scores = classifier(states, conditions, valid)
        expected = torch.tensor([0.6 / 0.07, -1e9, expected / 0.07])
        torch.testing.assert_close(scores.flatten(), expected)
        assert classifier.background.requires_grad == background
