"""Image files: which there are, how they are decoded within limits, and the tensors that are made of them.

decode.py decodes one (decoder_pool.py in another process, where it may be hostile), orientation.py turns it upright,
transforms.py cuts and scales it. tensors.py has the Dataset that training reads.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from proxygml.data.images.settings import ImageSettings as ImageSettings
    from proxygml.data.images.tensors import ImageDataset as ImageDataset
    from proxygml.data.images.tensors import collate as collate

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submod_attrs={"settings": ["ImageSettings"], "tensors": ["ImageDataset", "collate"]}
)
