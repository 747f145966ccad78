"""Warnings of the package.

Errors are Python's own (``ValueError`` for shapes, ranges and non-finite values, ``TypeError`` for
the wrong kind of object and for unsupported pairs of model and method). Warnings have classes of
their own, so that a user can turn each kind into an error or silence it by name.
"""


class BayeskitWarning(UserWarning):
    """Base class of every warning that the package raises."""


class ConvergenceWarning(BayeskitWarning):
    """An iterative method stopped before it met its own criterion; the result says so too."""


class ConditioningWarning(BayeskitWarning):
    """The data or the model leave something undetermined, or determined to few digits."""


class PrecisionWarning(BayeskitWarning):
    """A number of lower precision than the computation's came in."""
