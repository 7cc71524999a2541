"""TLS of the gateways: what clients ask for, certificates from files and by ACME, and the listener that uses them."""
