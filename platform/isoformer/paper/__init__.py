"""The paper's tables, made anew on a root's own data."""
