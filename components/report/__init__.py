"""The report: its content, its file and its pages."""

from pathlib import Path

#: The folder of the templates of all pages.
TEMPLATES = Path(__file__).parent / "templates"
