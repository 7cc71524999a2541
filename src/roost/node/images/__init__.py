"""Images: immutable root file systems that sandboxes mount as read-only overlay lowers.

`store` keeps them (names, contents, holds, collection); `build` makes one from distribution packages, `oci` reads OCI
layouts and docker archives, `archive` drives `unpack`, the confined process that extracts hostile tarballs.
"""

from roost.node.images.store import Hold, ImageStore

__all__ = ["Hold", "ImageStore"]
