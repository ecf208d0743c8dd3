"""Studies: methods compared under matched conditions, with what they cost and how sure the answer is."""
