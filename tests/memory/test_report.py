"""What a request says about memory."""

from undertow.memory.ladder import Economy, StepDown
from undertow.memory.report import MemoryReport


def test_a_peak_above_the_budget_is_said_with_both_numbers() -> None:
    kept = MemoryReport(peaks={"text": 100, "denoise": 900}, budget_bytes=900)
    assert kept.decisions == ()
    missed = MemoryReport(peaks={"text": 100, "denoise": 3 * 2**20}, budget_bytes=2 * 2**20)
    assert missed.decisions == ("memory: the peak was 3.1 MB, above the budget of 2.1 MB",)


def test_without_a_budget_or_a_peak_there_is_nothing_to_compare() -> None:
    assert MemoryReport(peaks={"denoise": 900}).decisions == ()
    assert MemoryReport(budget_bytes=900).decisions == ()


def test_what_was_done_comes_first() -> None:
    step = StepDown(unit=0, reason="to keep to the budget", economy=Economy(evict_idle=True))
    report = MemoryReport(peaks={"denoise": 900}, budget_bytes=800, course=(step,))
    assert [line.split(":")[0] for line in report.decisions] == [str(step).split(":")[0], "memory"]
