"""Built-in data sets: one builder a file, `build(**options) -> list[Record]`, from pinned package files, byte-identical on rerun."""
