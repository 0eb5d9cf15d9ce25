"""Affixes that are learned once, on many prompts, and kept: training, evaluation, files, exports.

`tiller affix train` is `train` below; what it writes goes around any prompt of the same model with
`affix=FILE`, in every method.
"""

from __future__ import annotations
