"""One static HTML page about a dataset, a run and a sweep, and the score table for the terminal.

collect        reads what the stages left; what is missing is noted
figures        matplotlib → inline SVG in the page's own colours
build          fills the template and writes the page
console_table  the score table at the end of the demo
"""

from isoformer.report.build import build_report
from isoformer.report.console_table import print_table

__all__ = ["build_report", "print_table"]
