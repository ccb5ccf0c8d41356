"""A condition is cut, joined, scaled and replaced row by row, vector and tokens alike."""

import pytest
import torch

from cddpm.models.cddpm import Condition


def condition(rows: int = 4, tokens: bool = True) -> Condition:
    """``rows`` vectors (2,) and, if asked for, 3 tokens (5,) each; all numbers differ."""
    numbers = torch.arange(1.0, 1 + rows * 17).view(rows, 17)
    return Condition(numbers[:, :2], numbers[:, 2:].view(rows, 3, 5) if tokens else None)


def assert_equal(found: Condition, expected: Condition) -> None:
    assert torch.equal(found.vector, expected.vector)
    assert (found.tokens is None) == (expected.tokens is None)
    if expected.tokens is not None:
        assert torch.equal(found.tokens, expected.tokens)


@pytest.mark.parametrize("tokens", [True, False])
@pytest.mark.parametrize(
    "rows", [torch.tensor([3, 0, 0]), slice(1, 3), torch.tensor([True, False, False, True])], ids=str
)
def test_rows_belong_together(rows, tokens):
    whole = condition(tokens=tokens)
    found = whole[rows]
    for i, row in enumerate(torch.arange(4)[rows].tolist()):
        assert torch.equal(found.vector[i], whole.vector[row])
        assert not tokens or torch.equal(found.tokens[i], whole.tokens[row])
    assert len(found) == len(torch.arange(4)[rows])


@pytest.mark.parametrize("tokens", [True, False])
def test_joining_undoes_cutting(tokens):
    whole = condition(tokens=tokens)
    assert_equal(Condition.cat([whole[:1], whole[1:3], whole[3:]]), whole)


@pytest.mark.parametrize("tokens", [True, False])
def test_scaling_reaches_vector_and_tokens_and_one_changes_nothing(tokens):
    whole = condition(tokens=tokens)
    assert_equal(whole.scaled(1.0), whole)
    doubled = whole.scaled(2.0)
    assert_equal(doubled, Condition(2 * whole.vector, None if whole.tokens is None else 2 * whole.tokens))


@pytest.mark.parametrize("tokens", [True, False])
def test_replaced_rows_are_the_others_and_the_rest_stays(tokens):
    whole = condition(tokens=tokens)
    other = Condition(-torch.ones(1, 2), -torch.ones(1, 1, 5) if tokens else None)
    rows = torch.tensor([False, True, True, False])
    found = whole.replaced(rows, other)
    assert_equal(found[~rows], whole[~rows])
    assert torch.equal(found.vector[rows], torch.full((2, 2), -1.0))
    assert not tokens or torch.equal(found.tokens[rows], torch.full((2, 3, 5), -1.0))


def test_both_sides_of_a_replacement_are_in_the_graph():
    vector, token = torch.zeros(1, 2, requires_grad=True), torch.zeros(1, 1, 5, requires_grad=True)
    whole = condition()
    found = whole.replaced(torch.zeros(4, dtype=torch.bool), Condition(vector, token))
    (found.vector.sum() + found.tokens.sum()).backward()
    assert not vector.grad.any()
    assert not token.grad.any()
