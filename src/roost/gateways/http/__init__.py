"""The HTTP gateway: requests by host name into sandboxes. `exchange` says how its parts fit together."""
