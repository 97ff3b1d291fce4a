"""The sources of shaders/ as the build reads them."""

from __future__ import annotations

import sys

from places import TOOLS

sys.path.insert(0, str(TOOLS))
import embed_shaders

__all__ = ["FAMILIES", "FAMILY_OF", "embed_shaders"]

FAMILIES = {family.name: family for family in embed_shaders.families()}
FAMILY_OF = {kernel: family.name for family in FAMILIES.values() for kernel in family.functions}
