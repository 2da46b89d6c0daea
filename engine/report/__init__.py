"""One page that says what a head decides, how well, and what must be read with it."""

from __future__ import annotations

from engine.report.page import render_report

__all__ = ["render_report"]
