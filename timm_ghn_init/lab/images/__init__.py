"""Labelled images: a name or a folder goes in, tensors of images and labels come out.

`datasets` reads named data sets, `folder` reads folders, `formula` draws images, `batches` serves them to the training
of a GHN.
"""

from ...utils.text import Told


class DatasetError(Told, RuntimeError):
    """A data set is not available or unreadable; the message names it and the fix."""
