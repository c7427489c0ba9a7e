"""A dry run of a recipe's first batches: what would be found out after hours, before the first step."""

from videokd.preflight.dry_run import check as check
from videokd.preflight.dry_run import preflight as preflight
from videokd.preflight.report import Connection as Connection
from videokd.preflight.report import Finding as Finding
from videokd.preflight.report import Forecast as Forecast
from videokd.preflight.report import Report as Report
from videokd.preflight.report import TeacherScore as TeacherScore
from videokd.preflight.report import TermScore as TermScore
