"""Static HTML pages about what the stages left, and the score table for the terminal.

build          the page about data, a run and a sweep in short; collect reads for it, figures draws for it
sweep_page     the page about a study; study reads for it and study_facts reckons, sweep_figures and
               parameter_figures draw for it
compare_page   runs side by side; comparison reads for it, compare_figures draws for it
page           what all pages share; svg makes matplotlib's drawings part of them, heat_map draws its own
console_table  the score table at the end of the demo
"""

from isoformer.report.build import build_report
from isoformer.report.compare_page import build_compare_report
from isoformer.report.comparison import compare
from isoformer.report.console_table import print_table
from isoformer.report.sweep_page import build_sweep_report

__all__ = ["build_compare_report", "build_report", "build_sweep_report", "compare", "print_table"]
