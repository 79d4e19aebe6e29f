"""Weights of published and mini models for Flax: rule tables, their origins, the mini files."""
