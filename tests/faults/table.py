"""Runs the tests of faults and writes what came to docs/faults.md: python tests/faults/table.py [TEST ...]

A row of the page is one or more tests; what a test tells of its outcome stands in the last column. A test that fails
stands there in bold, one that could not be run with its reason.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_PAGE = _ROOT / "docs" / "faults.md"
_BLOCK = re.compile(r"<!-- begin (?P<name>[a-z]+) -->\n.*?<!-- end -->", re.DOTALL)
_FAULTS, _WHOLE, _FILES = "tests/faults/", "tests/test_faults.py", "tests/_base/test_files.py"
_KILLS, _CALLS = _FAULTS + "test_kills.py", _FAULTS + "test_failing_calls.py"
_PROCESSES, _PLACES, _SAME = (_FAULTS + f"test_{name}.py" for name in ("processes", "places", "same_bytes"))
_OLD = "6, one line, the old output, nothing else"
_GONE = "130, one line, the old output, no process, no temporary file"
# Group -> rows: case, required outcome, file, name of the test (its parameters in brackets where not all are meant).
ROWS: dict[str, list[tuple[str, str, str, str]]] = {
    "killed": [
        ("SIGKILL at random moments of a run, half of them while it writes; the next run", "old or complete new, no "
         "process left; the next run cleans up beside the output and gives the same bytes", _KILLS,
         "test_twenty_killed_runs_leave_the_old_or_the_new_output_and_no_process"),
        ("SIGKILL at a step of writing", "old or complete new", _KILLS,
         "test_a_run_killed_at_a_step_of_writing_leaves_the_old_or_the_new_output"),
        ("SIGKILL before and after each system call of the output folder", "old or complete new", _FILES,
         "test_a_run_killed_at_each_call_leaves_the_old_or_the_new_complete"),
        ("SIGKILL at 20 random moments of the output folder", "old or complete new", _FILES,
         "test_a_run_killed_at_any_moment_leaves_the_old_or_the_new_complete"),
        ("SIGKILL while `fewbits report` rewrites", "an output that verifies", _WHOLE,
         "test_sigkill_while_writing_leaves_an_output_that_verifies_and_the_next_run_cleans_up"),
        ("Ctrl-C once and twice, in each stage", _GONE, _PROCESSES, "test_ctrl_c_in_each_stage_leaves_nothing"),
        ("Ctrl-C in the search of a real model", _GONE, _WHOLE, "test_ctrl_c_leaves_with_130_and_no_trace"),
        ("Ctrl-C when the output is in place", "the run's own code, and a line that says so", _PROCESSES,
         "test_ctrl_c_when_the_output_is_in_place_is_told_and_changes_nothing"),
        ("The child that opens a model is killed at its first request", "6, one line", _PROCESSES,
         "test_a_killed_child_is_told_in_one_line"),
        ("The child is killed later", "4 or 6, one line, or a new child", _PROCESSES,
         "test_a_child_killed_later_is_told_or_replaced"),
        ("The child gets no more time", "6, one line, no hang", _PROCESSES,
         "test_a_starved_child_is_told_in_one_line"),
    ],
    "disk": [
        ("ENOSPC at every 12 kB of a small tmpfs", _OLD, _CALLS,
         "test_a_disk_that_is_full_after_any_number_of_bytes_leaves_the_old_output"),
        ("ENOSPC at four sizes, a calibrated model", _OLD, _WHOLE,
         "test_a_full_disk_is_told_and_the_old_output_kept"),
        ("EIO, EROFS, EDQUOT from the n-th write, sync or rename of a run, until one succeeds", _OLD, _CALLS,
         "test_whichever_write_sync_or_rename_fails_the_old_output_stays"),
        ("The same for the output folder alone, both ways of swapping", _OLD, _FILES,
         "test_every_failing_call_leaves_the_old_output_and_nothing_hidden"),
        ("EIO and ENOSPC in the data file of large tensors", _OLD, _CALLS,
         "test_a_data_file_that_cannot_be_written_leaves_the_old_output"),
        ("A read-only file system", _OLD, _FILES, "test_a_read_only_place_is_unwritable"),
        ("A place that cannot be written", "6 before work", _WHOLE,
         "test_a_place_that_cannot_be_written_is_refused_before_work"),
    ],
    "resources": [
        ("RLIMIT_AS of 24, 100, 350 MB: less than the libraries take", "6 before work", _PROCESSES,
         "test_too_little_address_space_is_refused_before_work"),
        ("RLIMIT_AS at 0.8x to 2.4x of the forecast", "done, or 6 in one line", _PROCESSES,
         "test_around_the_forecast_of_memory_a_run_ends_well_or_is_refused"),
        ("RLIMIT_NOFILE 64 and 12", "64: done; 12: done, or 6", _PROCESSES,
         "test_few_open_files_are_enough_or_told"),
    ],
    "places": [
        ("stdin, stdout, stderr closed or full, a whole run", "done; a full stdout 6", _PLACES,
         "test_a_whole_run_bears_closed_and_full_streams"),
        ("The same, `fewbits formats`", "done; a full stdout 6", _WHOLE,
         "test_closed_and_full_streams_crash_nothing"),
        ("A refusal with a full stderr", "its own code", _PLACES, "test_a_refusal_bears_a_full_stderr"),
        ("The reader leaves, as `head` does", "the code that the work has", _WHOLE,
         "test_a_reader_who_leaves_changes_no_exit_code"),
        ("No HOME, LANG=C, PYTHONUTF8=0, no terminal, a whole run", "done, ASCII", _PLACES,
         "test_a_whole_run_needs_no_home_no_locale_and_no_terminal"),
        ("The same, the other verbs", "done, ASCII", _WHOLE,
         "test_a_bare_environment_and_an_ascii_terminal_are_enough"),
        ("The terminal hangs up", "done, or 6", _PLACES, "test_a_terminal_that_hangs_up_ends_nothing_half"),
        ("TMPDIR missing, read-only, full, tiny", "done, or 6", _PLACES,
         "test_the_folder_for_temporary_files_may_be_missing_read_only_or_full"),
        ("Two runs on one output", "the second: 6", _WHOLE, "test_a_second_run_on_the_same_output_is_refused"),
        ("Read-only inputs in a read-only folder", "done; an output there 6", _PLACES,
         "test_read_only_inputs_in_a_read_only_folder_are_enough"),
        ("Output is, or lies inside, an input", "2", _PLACES,
         "test_an_output_that_is_or_holds_an_input_is_refused"),
        ("Spaces, non-ASCII, quotes, 200 characters, leading dash, newline in paths", "done", _WHOLE,
         "test_any_path_is_as_good_as_another"),
        ("Output or model is a link, also one that leads nowhere yet", "done, the link stays", _PLACES,
         "test_links_are_followed_and_stay"),
    ],
    "bytes": [
        ("--jobs 1, 2, 3, by the same plan", "the same bytes", _SAME,
         "test_any_number_of_jobs_gives_the_same_bytes"),
        ("Hash seed, locale, time zone, HOME, threads, folder, by the same plan", "the same bytes; no path, no host "
         "name", _SAME, "test_another_environment_gives_the_same_bytes_and_names_nothing_of_it"),
        ("The figure, measured again in a fresh process", "equal", _SAME,
         "test_a_fresh_process_measures_the_figure_that_was_reported"),
        ("The reported size, with and without a data file", "bytes on disk", _SAME,
         "test_the_reported_size_is_that_on_disk"),
        ("The reported size of a float model with a data file", "bytes on disk", _SAME,
         "test_the_reported_size_of_a_float_model_with_a_data_file_is_that_on_disk"),
    ],
}  # fmt: skip


@dataclass
class Outcome:
    """What the tests of one row came to."""

    right: int = 0
    failed: list[str] = field(default_factory=list)
    skipped: set[str] = field(default_factory=set)
    told: list[str] = field(default_factory=list)

    def words(self) -> str:
        """Returns the last cell of the row."""
        if not (self.right or self.failed or self.skipped):
            return "**not run**"
        words = [f"**{len(self.failed)} failed: {', '.join(self.failed)[:200]}**"] if self.failed else []
        words += [f"not run here: {reason}" for reason in sorted(self.skipped)]
        if self.right:
            words.append(f"as required ({self.right})" + (": " if self.told else "") + "; ".join(self.told))
        return ". ".join(words).replace("|", "\\|")


def run(names: list[str]) -> dict[tuple[str, str], Outcome]:
    """Returns what each test came to, by file and name; of those named only, where any are."""
    every = {(file, test) for rows in ROWS.values() for _, _, file, test in rows}
    wanted = sorted(f"{file}::{test}" for file, test in every if not names or test in names)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "results.xml"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-m",
            "",
            f"--junit-xml={path}",
            "-o",
            "junit_family=xunit1",
            *wanted,
        ]
        subprocess.run(command, cwd=_ROOT, check=False)
        cases = ElementTree.parse(path).getroot().iter("testcase")
        found: dict[tuple[str, str], Outcome] = {}
        for case in cases:
            name, _, parameter = case.attrib["name"].partition("[")
            outcome = found.setdefault((case.attrib["file"], name), Outcome())
            label = parameter.removesuffix("]")
            skipped = case.find("skipped")
            if case.find("failure") is not None or case.find("error") is not None:
                outcome.failed.append(label or name)
            elif skipped is not None and skipped.attrib.get("type") == "pytest.xfail":
                outcome.failed.append(f"known: {skipped.attrib.get('message', '')}")
            elif skipped is not None:
                outcome.skipped.add(skipped.attrib.get("message", "skipped"))
            else:
                outcome.right += 1
                told = [p.attrib["value"] for p in case.iter("property") if p.attrib["name"] == "outcome"]
                outcome.told += [f"{label}: {text}" if label else text for text in told]
    return found


def main(names: list[str]) -> int:
    """Returns 0 where every row came out as required; rows of tests that are not named stay as they are."""
    found = run(names)
    page = _PAGE.read_text(encoding="utf-8")
    blocks = {}
    for group, rows in ROWS.items():
        lines = ["| Case | Required | Outcome |", "|---|---|---|"]
        for case, required, file, test in rows:
            start = f"| {case} | {required} | "
            words = found.get((file, test), Outcome()).words()
            kept = [line for line in page.splitlines() if line.startswith(start)]
            lines += kept if kept and (file, test) not in found else [f"{start}{words} |"]
        blocks[group] = "\n".join(lines)

    def replace(place: re.Match[str]) -> str:
        return f"<!-- begin {place['name']} -->\n{blocks[place['name']]}\n<!-- end -->"

    _PAGE.write_text(_BLOCK.sub(replace, page), encoding="utf-8")
    wrong = sum(bool(outcome.failed) for outcome in found.values())
    print(f"{wrong} of {len(found)} tests failed")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
