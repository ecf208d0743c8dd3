"""Pictures of a study, each a function from its analysis to a PNG."""
