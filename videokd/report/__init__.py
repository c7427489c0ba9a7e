"""What happened in a run or a comparison: numbers, tables and plots."""

from videokd.report.comparison import arms, read_evaluation, write_evaluation
from videokd.report.pictures import draw_all

__all__ = ["arms", "draw_all", "read_evaluation", "write_evaluation"]
