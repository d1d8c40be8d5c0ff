"""Views: how a tensor is a stack of (out, in) matrices. The geometry and the scale of the rate both come from here."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

_FLAGS = ("element", "flatten", "batch", "transposed")
_COUNTS = ("rows", "heads")


@dataclass(frozen=True, kw_only=True)
class View:
    """How a tensor is a stack of (out, in) matrices; ``split`` and ``join`` are inverse to each other.

    Steps are taken in this order, and the text form lists them in it, separated by commas:

    - ``matrix``: a 2-D tensor as it is (the text of a view without any other step);
    - ``flatten``: (out, a, b, ...) becomes (out, a b ...), as for a convolution;
    - ``batch``: all axes but the last two count matrices, as for experts stored in one tensor (experts, out, in);
    - ``transposed``: the tensor is stored as (in, out), as in the ``Conv1D`` of GPT-2;
    - ``rows=768,256,256``: sections along the out axis, as for a fused query, key, value or gate, up projection;
    - ``heads=12``: the out axis, or that of each section, is cut into equal heads; ``heads=12,4,4`` for one number
      a section. Groups of a convolution are heads too: ``flatten,heads=C`` takes each filter of a depthwise one alone;
    - ``element``: no matrices; stands alone, and is the view of vectors and of rules that work on elements.

    Attributes:
        element: stands for the step of the same name; likewise the others.
        flatten: see above.
        batch: see above.
        transposed: see above.
        rows: lengths of the sections; empty for one.
        heads: number of heads, one for all sections or one a section; empty for no cut.

    Raises:
        ValueError: steps that exclude each other, or lengths that are not positive.
    """

    element: bool = False
    flatten: bool = False
    batch: bool = False
    transposed: bool = False
    rows: tuple[int, ...] = ()
    heads: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.element and (self.flatten or self.batch or self.transposed or self.rows or self.heads):
            raise ValueError(f"view {self}: 'element' stands alone, it has no matrices to cut or transpose")
        if self.flatten and self.batch:
            raise ValueError(
                f"view {self}: 'flatten' and 'batch' exclude each other; keep the one that keeps matrices apart"
            )
        if any(n < 1 for n in (*self.rows, *self.heads)):
            raise ValueError(f"view {self}: lengths of rows and numbers of heads must be positive")
        if len(self.heads) > 1 and len(self.heads) != len(self.rows):
            raise ValueError(
                f"view {self}: {len(self.heads)} numbers of heads for {max(len(self.rows), 1)} section(s); "
                "give one for all, or one a section"
            )

    def __str__(self) -> str:
        steps = [name for name in _FLAGS if getattr(self, name)]
        steps += [f"{name}={','.join(map(str, getattr(self, name)))}" for name in _COUNTS if getattr(self, name)]
        return ",".join(steps) or "matrix"

    @classmethod
    def parse(cls, text: str | View) -> View:
        """The view of a text such as ``"transposed,rows=768,768,768"``; a View is returned as it is.

        Raises:
            ValueError: an unknown or repeated step (the message gives the closest ones), or one without its numbers.
        """
        if isinstance(text, View):
            return text
        if not isinstance(text, str):
            raise TypeError(f"a view must be a text such as 'transposed,rows=768,256,256', got {text!r}")
        steps: dict[str, list[int]] = {}
        last = ""
        for word in (w.strip() for w in text.split(",")):
            if last in _COUNTS and word.isdigit():
                steps[last].append(int(word))
                continue
            name, equals, number = word.partition("=")
            if name not in (*_FLAGS, *_COUNTS, "matrix") or (equals and name not in _COUNTS):
                near = difflib.get_close_matches(name, [*_FLAGS, *_COUNTS, "matrix"], n=1)
                known = f"did you mean {near[0]!r}?" if near else f"known: matrix, {', '.join((*_FLAGS, *_COUNTS))}"
                raise ValueError(f"view {text!r}: unknown step {word!r}; {known}")
            if name in steps:
                raise ValueError(f"view {text!r}: {name!r} is given twice")
            if name in _COUNTS and not number.isdigit():
                raise ValueError(f"view {text!r}: {name} needs whole numbers, as in {name}=768,256,256")
            steps[name] = [int(number)] if equals else []
            last = name
        flags = {name: True for name in _FLAGS if name in steps}
        return cls(**flags, rows=tuple(steps.get("rows", ())), heads=tuple(steps.get("heads", ())))

    @classmethod
    def default(cls, shape: Sequence[int]) -> View:
        """The view of a tensor that nothing else is known of: 2-D a matrix, more axes flattened, fewer no matrix."""
        return cls(element=len(shape) < 2, flatten=len(shape) > 2)

    @property
    def is_matrix(self) -> bool:
        """Whether there are matrices at all."""
        return not self.element

    def joined(self) -> View:
        """The same view with the sections (and their heads) kept together as one matrix."""
        return replace(self, rows=(), heads=()) if self.rows else self

    def shapes(self, shape: Sequence[int]) -> list[tuple[int, ...]]:
        """Shapes (..., m, n) of the stacks that ``split`` makes of a tensor of this shape; m = out, n = in.

        Raises:
            ValueError: the view does not fit; the message names the view, the shape and what would fit.
        """
        if self.element:
            return [tuple(shape)]
        *outer, m, n = self._stack(shape)
        if self.transposed:
            m, n = n, m
        sections = self.rows or (m,)
        if sum(sections) != m:
            raise self._misfit(
                shape, f"the rows add up to {sum(sections)}, but the out axis has {m}", "make them add up"
            )
        counts = self.heads * len(sections) if len(self.heads) == 1 else self.heads
        if not counts:
            return [(*outer, rows, n) for rows in sections]
        stacks = []
        for rows, count in zip(sections, counts, strict=True):
            if rows % count:
                fix = "give a number of heads that divides it"
                raise self._misfit(shape, f"{rows} rows are not {count} equal heads", fix)
            stacks.append((*outer, count, rows // count, n))
        return stacks

    def split(self, x: Tensor) -> list[Tensor]:
        """The stacks (..., m, n) of a tensor, of the shapes that ``shapes`` gives.

        They are torch views of ``x``, so that writing to them writes to ``x``; only ``flatten`` copies, and only where
        the memory format (channels-last, say) leaves no choice. ``x`` itself is never written.

        Raises:
            ValueError: the view does not fit the shape.
        """
        stacks = self.shapes(x.shape)
        if self.element:
            return [x]
        y = x.reshape(self._stack(x.shape))
        if self.transposed:
            y = y.mT
        sections = y.split(self.rows, dim=-2) if self.rows else (y,)
        if not self.heads:
            return list(sections)
        return [s.unflatten(-2, stack[-3:-1]) for s, stack in zip(sections, stacks, strict=True)]

    def join(self, pieces: Sequence[Tensor], like_shape: Sequence[int]) -> Tensor:
        """The tensor of shape ``like_shape`` whose ``split`` is ``pieces``; it may share memory with them.

        Raises:
            ValueError: the view does not fit the shape, or the pieces are not of the shapes that ``split`` makes.
        """
        stacks = self.shapes(like_shape)
        if [tuple(p.shape) for p in pieces] != stacks:
            raise ValueError(
                f"view '{self}': pieces of shapes {[tuple(p.shape) for p in pieces]} do not make a tensor of shape "
                f"{tuple(like_shape)}, which splits into {stacks}"
            )
        if self.heads:
            pieces = [p.reshape(*p.shape[:-3], p.shape[-3] * p.shape[-2], p.shape[-1]) for p in pieces]
        y = pieces[0] if len(pieces) == 1 else torch.cat(list(pieces), dim=-2)
        if self.transposed:
            y = y.mT
        return y.reshape(tuple(like_shape))

    def _stack(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape as (..., rows, columns), still transposed if the tensor is."""
        shape = tuple(shape)
        if self.flatten:
            if len(shape) < 2:
                raise self._misfit(shape, "flatten needs at least two axes", "use the view 'element'")
            return shape[0], math.prod(shape[1:])
        if self.batch:
            if len(shape) < 3:
                raise self._misfit(shape, "batch needs at least three axes", f"use the view '{View.default(shape)}'")
        elif len(shape) != 2:
            fix = "use 'flatten' (a convolution) or 'batch' (a stack)" if len(shape) > 2 else "use the view 'element'"
            raise self._misfit(shape, "a matrix has two axes", fix)
        return shape

    def _misfit(self, shape: Sequence[int], reason: str, fix: str) -> ValueError:
        return ValueError(f"view '{self}' does not fit a tensor of shape {tuple(shape)}: {reason}; {fix}")
