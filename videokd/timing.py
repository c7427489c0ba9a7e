"""Where a run's time goes, in words."""


def bound_by(loader: float, teacher: float, student: float) -> str:
    """A sentence with each part's share of a step, and what to change about the largest.

    Args:
        loader: seconds of a step in which everything else waits for clips.
        teacher: seconds in which teachers compute.
        student: seconds in which the student computes, forward and backward.
    """
    parts = {"loader": loader, "teacher": teacher, "student": student}
    total = max(sum(parts.values()), 1e-9)
    shares = {name: seconds / total for name, seconds in parts.items()}
    taught = f"{shares['teacher']:.0%} teacher, " if teacher else ""
    largest = max(shares, key=lambda name: shares[name])
    return (
        f"a step of {_seconds(total)} is {shares['loader']:.0%} waiting for clips, {taught}"
        f"{shares['student']:.0%} student; {_ADVICE[largest]}"
    )


_ADVICE = {
    "loader": ("the loader bounds the run: raise data.workers, up to the number of cores, or `videokd data pack`"),
    "teacher": (
        "the teacher bounds the run: store what it says (`videokd label`), or set data.views and the teacher's remember"
    ),
    "student": (
        "the student bounds the run: a smaller student or input is faster, and on a GPU --machine.precision bf16"
    ),
}


def duration(seconds: float) -> str:
    """As a reader says it: "45 s", "12 min", "3.4 h", "2.1 days"."""
    for most, unit, length in ((90, "s", 1), (90 * 60, "min", 60), (48 * 3600, "h", 3600)):
        if seconds < most:
            count = seconds / length
            return f"{count:.1f} {unit}" if unit == "h" and count < 10 else f"{count:.0f} {unit}"
    return f"{seconds / 86400:.1f} days"


def _seconds(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
