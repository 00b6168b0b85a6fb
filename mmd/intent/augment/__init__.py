"""Rule-guided augmentation of the few-shot set (KDSL: the larger model is fine-tuned on augmented data).

:func:`augment` makes copies of samples; each keeps its parent's task, label and fold. Rules guide it twice: what they
know a label by is spared (:mod:`~mmd.intent.augment.guard`), and a copy that a high-precision rule for another label
fires on is dropped (:mod:`~mmd.intent.augment.augmenter`). Source: METHODS section 1; the methods themselves are ours.
"""

from mmd.intent.augment.augmenter import Augmented, Augmenter, Counts, Dropped, Family, augment, content_key

__all__ = ["Augmented", "Augmenter", "Counts", "Dropped", "Family", "augment", "content_key"]
