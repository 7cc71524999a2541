"""Workspaces in object storage: what a layer stack changed over its image, saved, restored, collected and checked.

The order of things in one account: packs of chunks, then the index objects that name them, then the revision. Every
object is created once and never changed, so a revision exists wholly or not at all. Heads, names, locks: not here.
"""

from roost.node.sync.check import Problem, check
from roost.node.sync.collect import Collected, collect
from roost.node.sync.restore import restore
from roost.node.sync.revision import Revision
from roost.node.sync.save import Layer, Saving, save
from roost.node.sync.store import Options, Store, open_store
from roost.node.sync.vault import Vault

__all__ = [
    "Collected",
    "Layer",
    "Options",
    "Problem",
    "Revision",
    "Saving",
    "Store",
    "Vault",
    "check",
    "collect",
    "open_store",
    "restore",
    "save",
]
