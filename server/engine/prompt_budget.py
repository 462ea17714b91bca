"""How many rows of prompts a step may have beside rows that decode, so that the streams stay even.

Learns from steps that were run what a step of decodes takes and what each row of a prompt adds. Knows no sequences.
"""

LEARNING = 0.2  # the weight of the newest step
FIRST_ROWS = 32  # while nothing is known of what a row takes
MIN_ROWS = 8  # prompts go on, however slow their rows are


class PromptBudget:
    """Rows of prompts for the next step that has decodes.

    Args:
        max_rows: never more than that.
        max_stretch: how many times as long a step should take at most as one in which everyone decodes.
    """

    def __init__(self, *, max_rows: int, max_stretch: float) -> None:
        self._max_rows = max_rows
        self._max_stretch = max_stretch
        self._decode_seconds: dict[int, float] = {}  # of a step without prompts, by size class
        self._row_seconds: float | None = None  # that a row of a prompt adds

    def rows(self, num_decodes: int, num_joining: int = 0) -> int:
        """How many rows of prompts a step of so many decodes may have, while so many others have yet to decode.

        When many prompts come at once, the first of them to decode are not to be kept even among few: soon they are
        many, and until then every prompt waits.
        """
        alone, together = self._alone(num_decodes), self._alone(num_decodes + num_joining)
        if alone is None or together is None or self._row_seconds is None:
            rows = FIRST_ROWS
        else:
            longest = self._max_stretch * max(alone, together)
            rows = round((longest - alone) / max(self._row_seconds, 1e-9))
        return min(self._max_rows, max(MIN_ROWS, rows))

    def note_step(self, *, num_decodes: int, num_prompt_rows: int, seconds: float) -> None:
        """A step with decodes took so long."""
        size = num_decodes.bit_length()
        if num_prompt_rows == 0:
            known = self._decode_seconds.get(size)
            # Interruptions make steps longer, never shorter: a faster step is believed sooner.
            weight = LEARNING if known is None or seconds > known else 2 * LEARNING
            self._decode_seconds[size] = _mixed(known, seconds, weight)
            return
        alone = self._alone(num_decodes)
        if alone is not None:
            self._row_seconds = _mixed(self._row_seconds, max(0.0, seconds - alone) / num_prompt_rows, LEARNING)

    def _alone(self, num_decodes: int) -> float | None:
        """What a step of so many decodes takes without prompts: of the nearest size that was seen."""
        if not self._decode_seconds:
            return None
        wanted = num_decodes.bit_length()
        nearest = min(self._decode_seconds, key=lambda size: abs(size - wanted))
        return self._decode_seconds[nearest]


def _mixed(known: float | None, newest: float, weight: float) -> float:
    return newest if known is None else known + weight * (newest - known)
