"""Everything that touches verl's internals. Imports nothing of `recipe`; see README.md for the table of seams."""
