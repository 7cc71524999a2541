"""Roost: a self-hosted cloud of instant sandboxes."""

__version__ = "0.1.0"
