"""Errors of the measuring floor; each message is one line with the way out."""


class BenchmarkError(ValueError):
    """A measurement, a report file or an output cannot be used."""


class CandidateError(BenchmarkError):
    """One candidate failed; the message names it."""
