"""How `native/demo` is made: a procedural world, its captions, the training stages and the judge of the result."""
