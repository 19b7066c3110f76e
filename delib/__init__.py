"""Directed Evolution for sparsifying and compressing neural networks.

The method is five verbs, one module each: ``propose`` candidate sets, ``assess`` them by tentative
zeroing, ``evolve`` the student, ``quantize`` its survivors, ``encode`` the result without loss.
"""

__version__ = "0.1.0"
