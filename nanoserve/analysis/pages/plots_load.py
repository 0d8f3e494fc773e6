"""Drawings of who asks for how much, and when: `analysis.anatomy`."""

from nanoserve.analysis.pages.drawing import Drawing

LOAD: dict[str, Drawing] = {}
