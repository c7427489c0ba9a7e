"""What happened in a run or a comparison: numbers, tables and plots."""

from videokd.report.comparison import arms, write_evaluation
from videokd.report.pictures import draw_all
from videokd.run_files import read_evaluation

__all__ = ["arms", "draw_all", "read_evaluation", "write_evaluation"]
