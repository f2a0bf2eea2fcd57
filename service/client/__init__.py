"""The Python client and the `lustrate` command. Needs neither the service's parts nor torch."""
