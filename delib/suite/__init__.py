"""Running and showing notebooks: parameters, records, the runner, the report and its claims, figures, the explorer."""

from delib.suite.explorer import Explorer, Frame
from delib.suite.record import Run, git_revision, package_versions

__all__ = ["Explorer", "Frame", "Run", "git_revision", "package_versions"]
