"""Check types and shapes at run time, and refuse silent promotion, in every test."""

from __future__ import annotations

import os

os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from jaxtyping import install_import_hook

# Before anything of ours is imported: every annotated function checks its arguments and result.
install_import_hook(["rimjax", "ported_weights"], "typecheck.check")
