"""A view splits a tensor into stacks of matrices and joins them back: every element once, in the declared order."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steepest.routing import View

sizes = st.integers(1, 4)


@st.composite
def views_and_shapes(draw):
    """A view made of any steps, with a shape that fits it (zero experts or columns included)."""
    base = draw(st.sampled_from(["matrix", "flatten", "batch", "element"]))
    if base == "element":
        return View(element=True), tuple(draw(st.lists(st.integers(0, 4), max_size=4)))
    sections = draw(st.integers(1, 3))
    per_section = draw(st.booleans())
    counts = [draw(sizes) if per_section else 0 for _ in range(sections)]
    cut = draw(st.booleans())
    heads = tuple(counts) if cut and per_section else (draw(sizes),) if cut else ()
    rows = tuple(draw(sizes) * (counts[i] if len(heads) > 1 else heads[0] if heads else 1) for i in range(sections))
    if len(heads) > 1 and sections == 1:
        heads = heads[:1]
    transposed = draw(st.booleans())
    out, columns = sum(rows), draw(st.integers(0, 4))
    view = View(
        flatten=base == "flatten",
        batch=base == "batch",
        transposed=transposed,
        rows=rows if sections > 1 or draw(st.booleans()) else (),
        heads=heads,
    )
    matrix = (columns, out) if transposed else (out, columns)
    if base == "flatten":
        rest = matrix[1]
        factor = next((d for d in (2, 3) if rest % d == 0), 1)
        return view, (matrix[0], rest // factor, factor) if draw(st.booleans()) else (matrix[0], rest)
    if base == "batch":
        return view, (*draw(st.lists(st.integers(0, 3), min_size=1, max_size=2)), *matrix)
    return view, matrix


def layouts(x):
    """The same values in other memory layouts."""
    yield x
    yield x.transpose(0, -1).contiguous().transpose(0, -1)
    wide = x.new_zeros(*x.shape[:-1], x.shape[-1] * 2)
    wide[..., ::2] = x
    yield wide[..., ::2]
    if x.ndim == 4:
        yield x.contiguous(memory_format=torch.channels_last)


@settings(deadline=None, max_examples=150)
@given(views_and_shapes())
def test_split_and_join_are_inverse_in_any_layout(case):
    view, shape = case
    values = torch.arange(math.prod(shape), dtype=torch.float64).reshape(shape)
    for x in layouts(values) if values.ndim else [values]:
        pieces = view.split(x)
        assert [tuple(p.shape) for p in pieces] == view.shapes(shape)
        assert sorted(torch.cat([p.flatten() for p in pieces]).tolist()) == values.flatten().tolist()
        assert torch.equal(view.join(pieces, shape), values)
        assert torch.equal(x, values)
        assert torch.equal(view.join([2 * p for p in pieces], shape), 2 * values)
        assert torch.equal(x, values)


@settings(deadline=None)
@given(views_and_shapes())
def test_the_text_form_round_trips(case):
    view, _ = case
    assert View.parse(str(view)) == view
    assert View.parse(view) is view
    assert hash(View.parse(str(view))) == hash(view)


@settings(deadline=None)
@given(views_and_shapes())
def test_pieces_of_a_contiguous_tensor_are_views_of_it(case):
    view, shape = case
    x = torch.zeros(shape)
    for piece in view.split(x):
        piece.add_(1)
    assert torch.equal(x, torch.ones(shape))


def element_by_element(view: View, x: torch.Tensor) -> dict[tuple[int, ...], float]:
    """The slow, obvious meaning of a 2-D view: where each element (row, column) of ``x`` lands."""
    out, columns = (x.shape[1], x.shape[0]) if view.transposed else x.shape
    sections = view.rows or (out,)
    heads = view.heads * len(sections) if len(view.heads) == 1 else view.heads or (1,) * len(sections)
    where = {}
    start = 0
    for s, (length, count) in enumerate(zip(sections, heads, strict=True)):
        for r in range(length):
            for c in range(columns):
                head, row = divmod(r, length // count)
                where[s, head, row, c] = float(x[c, start + r] if view.transposed else x[start + r, c])
        start += length
    return where


@pytest.mark.parametrize(
    "text",
    [
        "matrix",
        "transposed",
        "rows=6,2,4",
        "transposed,rows=6,2,4",
        "heads=3",
        "rows=6,2,4,heads=2",
        "rows=6,2,4,heads=3,1,2",
        "transposed,rows=6,2,4,heads=3,1,2",
    ],
)
def test_every_element_lands_where_the_steps_say(text):
    view = View.parse(text)
    x = torch.randn(5, 12) if view.transposed else torch.randn(12, 5)
    landed = {}
    for s, piece in enumerate(view.split(x)):
        stack = piece if piece.ndim == 3 else piece[None]
        landed.update({(s, h, r, c): float(stack[h, r, c]) for h, r, c in torch.ones_like(stack).nonzero().tolist()})
    assert landed == element_by_element(view, x)


def test_experts_are_a_batch_and_their_sections_are_cut_in_each():
    x = torch.randn(3, 8, 5)
    gate, up = View.parse("batch,rows=6,2").split(x)
    assert torch.equal(gate, x[:, :6])
    assert torch.equal(up, x[:, 6:])
    gate, up = View.parse("batch,transposed,rows=3,2").split(x)
    assert torch.equal(gate, x[:, :, :3].mT)
    assert torch.equal(up, x[:, :, 3:].mT)
    nested = torch.randn(2, 3, 8, 5)
    assert View.parse("batch").shapes(nested.shape) == [(2, 3, 8, 5)]


def test_each_filter_of_a_depthwise_convolution_stands_alone():
    x = torch.randn(6, 1, 3, 3)
    (stack,) = View.parse("flatten,heads=6").split(x)
    assert stack.shape == (6, 1, 9)
    assert torch.equal(stack[4, 0], x[4].flatten())


def test_joined_drops_sections_and_their_heads_only():
    assert View.parse("transposed,rows=4,2,2,heads=2").joined() == View(transposed=True)
    assert View.parse("flatten,heads=6").joined() == View.parse("flatten,heads=6")


@pytest.mark.parametrize(
    ("shape", "text"), [((), "element"), ((5,), "element"), ((5, 3), "matrix"), ((5, 3, 2, 2), "flatten")]
)
def test_the_view_of_a_tensor_that_nothing_is_known_of(shape, text):
    assert str(View.default(shape)) == text
    assert View.default(shape).is_matrix == (len(shape) > 1)


@pytest.mark.parametrize(
    ("text", "shape", "complaint"),
    [
        (
            "matrix",
            (3, 4, 5),
            r"'matrix' does not fit a tensor of shape \(3, 4, 5\): .* two axes; use 'flatten' .*'batch'",
        ),
        ("matrix", (3,), r"shape \(3,\).*use the view 'element'"),
        ("flatten", (3,), r"'flatten' does not fit .*\(3,\).*use the view 'element'"),
        ("batch", (3, 4), r"'batch' does not fit .*\(3, 4\).*use the view 'matrix'"),
        ("rows=2,2", (5, 4), r"'rows=2,2' .*\(5, 4\): the rows add up to 4, but the out axis has 5; make them add up"),
        ("transposed,rows=2,3", (5, 4), r"the rows add up to 5, but the out axis has 4"),
        ("heads=3", (4, 6), r"'heads=3' .*\(4, 6\): 4 rows are not 3 equal heads; give a number .* divides"),
        ("rows=4,6,heads=4,4", (10, 6), r"6 rows are not 4 equal heads"),
    ],
)
def test_a_view_that_does_not_fit_says_what_would(text, shape, complaint):
    view = View.parse(text)
    with pytest.raises(ValueError, match=complaint):
        view.shapes(shape)
    with pytest.raises(ValueError, match=complaint):
        view.split(torch.zeros(shape))
    with pytest.raises(ValueError, match=complaint):
        view.join([torch.zeros(shape)], shape)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("transpose", "unknown step 'transpose'; did you mean 'transposed'"),
        ("", "unknown step ''"),
        ("row=3,3", "unknown step 'row=3'; did you mean 'rows'"),
        ("5,rows=3", "unknown step '5'"),
        ("rows", "rows needs whole numbers"),
        ("heads=", "heads needs whole numbers"),
        ("batch=2", "unknown step 'batch=2'"),
        ("rows=2,batch,3", "unknown step '3'"),
        ("rows=a,b", "rows needs whole numbers"),
        ("rows=-2,3", "rows needs whole numbers"),
        ("rows=0,3", "must be positive"),
        ("batch,batch", "'batch' is given twice"),
        ("flatten,batch", "exclude each other"),
        ("element,transposed", "stands alone"),
        ("rows=4,4,heads=2,2,2", "3 numbers of heads for 2 section"),
    ],
)
def test_a_text_that_is_no_view_is_refused(text, complaint):
    with pytest.raises(ValueError, match=complaint):
        View.parse(text)
    with pytest.raises(TypeError, match="must be a text"):
        View.parse(3)


def test_pieces_of_other_shapes_cannot_be_joined():
    with pytest.raises(ValueError, match=r"pieces of shapes \[\(2, 3\)\] do not make a tensor of shape \(3, 3\)"):
        View().join([torch.zeros(2, 3)], (3, 3))
