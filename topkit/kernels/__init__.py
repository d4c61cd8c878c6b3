"""Fast inner loops: one folder an operation, its plain-torch definition in reference.py."""
