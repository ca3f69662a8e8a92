"""Model families behind three Protocols; see `model`."""
