"""How Ray runs Encore; the only package that imports Ray."""
