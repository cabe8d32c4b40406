"""Labelled images to train and to test on.

`datasets` and `folder` read them, `formula` makes them up, `split` chooses which ones are held out, `batches` serves
those that are in memory to the training of a GHN.
"""

from ...utils.text import Told


class DatasetError(Told, RuntimeError):
    """A data set is not available or unreadable; the message names it and the fix."""
