"""What a preflight finds: sentences with a level, and the numbers behind them."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from videokd.json_files import finite

Level = Literal["ok", "warning", "error"]
Verdict = Literal["go", "go, but look at these", "don't"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    level: Level
    what: str
    """A word or two."""
    said: str
    """A sentence with the numbers, and what to do."""


@dataclass(frozen=True, kw_only=True)
class TeacherScore:
    """How right a teacher is on labelled clips."""

    teacher: str
    labelled: int
    """Clips with a label of which it says something."""
    right: int
    """Of them, those of which it says a class that they have first."""
    chance: float
    """Share that it would be right on if what it says had nothing to do with the clips."""
    p_value: float
    """Of being right so often by chance."""


@dataclass(frozen=True, kw_only=True)
class TermScore:
    """What a term does to the student, over the batches."""

    term: str
    value: float
    """Mean, before weights."""
    weight: float
    """After its warm-up: its own times what the weighting makes of it."""
    share: float | None
    """Norm of its weighted gradient in the student's model, over the sum of all terms' norms; None if not finite."""
    cosine: float | None
    """Between its gradient and that of the terms without a teacher; None where there is no such pair."""


@dataclass(frozen=True, kw_only=True)
class Connection:
    """Two taps that terms compare; shapes are steps, rows, columns and channels."""

    terms: tuple[str, ...]
    student_tap: str
    student_shape: tuple[int, int, int, int]
    teacher: str
    teacher_tap: str
    teacher_shape: tuple[int, int, int, int]
    grid: str
    """How finely: the whole map, a vector for each frame, or one for the clip."""
    connector: str | None
    """What is learned between them; None compares them as they are."""
    params: int


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What the run needs."""

    loader: float
    """Seconds of a step that everything waits for clips."""
    teacher: float
    """Seconds of a step, averaged over the run, that teachers compute."""
    student: float
    """Seconds of a step that the student computes, forward and backward, without the optimiser."""
    steps: int
    validation: float
    """Seconds of all validations together."""
    memory: int
    """Bytes at the peak, of the device."""
    memory_there: int | None
    disk: int
    """Bytes that checkpoints and the model take."""
    disk_free: int

    @property
    def seconds(self) -> float:
        """Of the whole run."""
        return self.steps * (self.loader + self.teacher + self.student) + self.validation


@dataclass(frozen=True, kw_only=True)
class Report:
    """All findings, and the tables behind them."""

    batches: int
    findings: tuple[Finding, ...]
    teachers: tuple[TeacherScore, ...] = ()
    terms: tuple[TermScore, ...] = ()
    connections: tuple[Connection, ...] = ()
    forecast: Forecast | None = None
    """None where no batch could be run."""

    def at(self, level: Level) -> list[Finding]:
        """The findings of one level."""
        return [finding for finding in self.findings if finding.level == level]

    @property
    def verdict(self) -> Verdict:
        """Whether to start the run."""
        if self.at("error"):
            return "don't"
        return "go, but look at these" if self.at("warning") else "go"

    def as_plain(self) -> dict[str, Any]:
        """Plain data for JSON, the verdict first; numbers that are not finite are None."""
        plain: dict[str, Any] = finite({"verdict": self.verdict, **asdict(self)})
        if self.forecast is not None:
            plain["forecast"]["seconds"] = self.forecast.seconds
        return plain
