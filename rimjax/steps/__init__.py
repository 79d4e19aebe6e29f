"""The method's steps besides matching, as functions of arrays."""
