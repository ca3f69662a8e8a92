"""`encore serve`: everything local that a server needs, started in order and ended without remains; see `launcher`."""
