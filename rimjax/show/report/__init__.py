"""The report of a run: a page that shows how good it is, where it errs, and on which images."""
