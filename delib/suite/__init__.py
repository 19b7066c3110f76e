"""Running and showing notebooks: parameters, records, the runner, the report and its claims, figures, the explorer."""

from delib.suite.byhand import ByHand
from delib.suite.choices import Choices
from delib.suite.exercises import check
from delib.suite.explorer import Explorer, Frame, explore
from delib.suite.record import Run
from delib.suite.sweep import Sweep

__all__ = ["ByHand", "Choices", "Explorer", "Frame", "Run", "Sweep", "check", "explore"]
