"""What was tried of bad inputs, faults and attacks, and what held: the tests that try it, counted.

    python benchmarks/robustness.py --markdown docs/robustness.md

Runs the tests that the table `ROWS` names and counts their cases, or inputs where a case tries many.
"""

import argparse
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]


class Row(NamedTuple):
    """One kind of input, fault or attack, and the tests that try it: by file, without the "test_" of both."""

    kind: str
    what: str
    tests: dict[str, str]

    def names(self) -> list[tuple[str, str]]:
        """(file, test)"""
        return [(f"test_{file}", f"test_{name}") for file, names in self.tests.items() for name in names.split()]

    def shown(self) -> str:
        """The tests, by file."""
        groups: dict[str, list[str]] = defaultdict(list)
        for file, name in self.names():
            groups[file].append(f"`{name}`")
        return "; ".join(f"{file}.py: {', '.join(names)}" for file, names in groups.items())


BAD, FAULT, ATTACK = "bad inputs", "faults", "security"

ROWS = (
    Row(BAD, "sources: names, keys and values that do not exist", {
        "sources": "unknown_names_list_all_sources what_begins_like_a_source_and_is_none_is_an_error "
        "values_are_checked_at_construction_too",
        "checkpoints": "unknown_names default_from_the_environment",
    }),
    Row(BAD, "a GHN's file that is damaged, something else, or at odds with itself", {
        "checkpoints": "wrong_files wrong_values_in_a_config saving_what_must_not_be_saved a_depth_that_is_none",
    }),
    Row(BAD, "finished weights that are damaged, or others than their name says", {
        "weights": "damaged_files_are_refused metadata_without_end a_dtype_that_no_file_can_hold",
        "cache": "a_damaged_file_is_replaced a_sound_file_of_something_else_is_replaced "
        "wrong_settings_leave_the_model_as_it_was no_sizes dtype_that_the_format_does_not_know",
    }),
    Row(BAD, "models that cannot be handled, or that refuse to be changed: named, and left as they were", {
        "undo": "a_container_that_refuses_writes modules_that_refuse_to_be_changed what_the_forward_writes_is_undone "
        "a_forward_that_raises_half_way kinds_that_are_refused scripted_models_are_refused_whole_and_in_part "
        "flat_parameters_are_refused what_is_no_module",
    }),
    Row(BAD, "images: 16-bit, CMYK, palettes, animated, truncated, empty", {
        "images": "pictures_are_read_as_what_they_show pictures_are_upright others_are_refused_by_name "
        "unreadable_kinds_of_image_are_refused_not_left_out folders_that_are_refused damaged_fashion_mnist",
        "finetune": "an_image_that_cannot_be_read_ends_the_work_before_it_begins a_folder_that_is_none",
    }),
    Row(BAD, "values: not finite, negative, too large, of another type; in Python and on the command line", {
        "checks": "values text_that_is_none what_is_too_large_is_called_so init_model init_model_of_something_else "
        "noise_that_no_dtype_holds postprocess training_runs the_width_of_a_ghn networks_that_nobody_would_ever_draw "
        "sizes_of_the_cache",
    }),
    Row(BAD, "weights that cannot be written, results that are not finite: the model is as it was", {
        "nothing_lost": "a_parameter_that_cannot_be_written a_classifier_of_other_classes_is_held_to_the_same "
        "results_that_are_not_finite failing_post_processing a_model_on_the_meta_device_stays_there",
    }),
    Row(BAD, "commands: options, files and names that cannot be", {
        "cli": "mistakes",
        "way_out": "mistakes_that_are_found_deep_inside",
        "compare": "mistakes files_of_strangers",
        "cache": "command_mistakes command_info_of_what_is_not_there command_survives_damaged_and_hostile_files",
        "bake": "mistakes shards_that_cannot_be",
        "finetune": "mistakes",
        "training": "mistakes a_folder_with_a_run_is_not_overwritten",
        "report": "mistakes what_is_no_run_is_left_out deep_nesting_is_a_mistake",
    }),
    Row(FAULT, "however a command ends: one line and its status; a traceback of bugs alone", {
        "way_out": "told_in_one_line more_than_there_is a_bug_says_that_it_is_one interrupted terminated "
        "a_full_disk_behind_stdout a_reader_that_has_seen_enough no_stdout a_terminal_of_few_letters",
        "nothing_lost": "ctrl_c_while_writing_waits_until_all_is_written",
    }),
    Row(FAULT, "the disk is full: what was there is intact, no half file stays", {
        "full_disk": "a_full_disk",
        "nothing_lost": "no_room_for_the_temporary_file",
        "atomic": "what_goes_wrong_changes_nothing torch_on_a_full_disk a_line_is_added_whole_or_not "
        "a_folder_is_left_as_it_was",
        "checkpoints": "a_full_disk a_disk_that_fills_up_while_it_downloads a_home_that_cannot_be_written",
        "download": "a_full_disk_is_no_fault_of_the_network",
        "cache": "disk_full read_only_folder no_folder_to_be_had",
        "hub": "cache_of_the_hub_that_cannot_be_written",
        "cli": "a_failed_write_leaves_the_old_folder a_failed_write_leaves_the_old_file",
    }),
    Row(FAULT, "killed at any moment: whole files only, and what was left goes", {
        "atomic": "what_a_killed_process_leaves_goes_with_the_next what_may_be_in_use_is_left_for_a_day "
        "a_folder_is_replaced_in_one_step a_folder_that_cannot_be_swapped",
        "cache": "killed_while_others_wait",
        "checkpoints": "killed_in_the_middle_of_a_download what_a_killed_conversion_left",
        "finetune": "a_run_that_was_stopped_gives_the_same_bits a_process_that_was_killed "
        "a_line_that_was_cut_off_costs_that_line_only",
        "training": "resumed_training_ends_where_uninterrupted_training_does",
    }),
    Row(FAULT, "several processes or threads at the same file or folder", {
        "atomic": "eight_processes_write_one_folder eight_threads_write_one_file what_is_being_written_stays",
        "cache": "threads_with_the_same_key processes_with_the_same_key file_system_without_locks "
        "a_lock_that_never_opens",
        "checkpoints": "eight_processes_fetch_one_file eight_threads_fetch_one_file",
        "hub": "two_pushers somebody_else_pushes_at_the_same_time others_push_all_the_time pushed_meanwhile "
        "main_taken_meanwhile",
        "finetune": "a_run_that_another_process_does_is_waited_for a_claim_ends_with_its_process",
    }),
    Row(FAULT, "networks and servers: none, slow, cut off, empty or wrong answers, errors", {
        "download": "too_slow too_long too_large an_answer_without_a_file an_empty_file",
        "checkpoints": "other_content_is_removed an_answer_with_nothing_in_it a_verified_file_that_is_no_ghn "
        "broken_connections_are_taken_up_again a_connection_that_brings_nothing a_beginning_of_another_file "
        "a_server_without_ranges http_errors no_network a_server_that_says_nothing a_hub_that_cannot_be_reached "
        "default_without_network_is_the_shipped_one default_with_neither",
        "hub": "errors_of_the_hub no_network download_that_is_cut download_that_never_ends upload_that_is_cut "
        "upload_that_never_succeeds_leaves_the_repository_as_it_was token_that_is_refused private_repository "
        "gated_repository",
    }),
    Row(ATTACK, "code in a file: every way by which a pickle calls something", {
        "unpickle": "nothing_is_called no_persistent_ids the_admitted_instructions_are_these "
        "misuse_of_what_is_admitted a_storage_with_code_in_it a_storage_that_is_something_else "
        "a_view_beyond_its_storage",
        "checkpoints": "other_objects_are_named_and_can_be_passed_over a_wrong_file_from_the_hub",
    }),
    Row(ATTACK, "small files that would take much memory or time, and downloads without end", {
        "unpickle": "bounds_of_memory_and_time what_unpacks_to_too_much",
        "hub": "more_than_can_be_needed_is_not_downloaded",
    }),
    Row(ATTACK, "files with random instructions, bytes and headers (fuzzing)", {
        "fuzz": "hostile_files",
        "unpickle": "damaged_files_give_one_kind_of_error",
        "checkpoints": "damaged_files_give_one_kind_of_error",
    }),
    Row(ATTACK, "links, pipes and files that somebody planted, and files that were altered", {
        "atomic": "a_link_at_the_target_is_replaced_not_followed what_was_planted_is_not_gone_on_with "
        "only_what_is_ours_by_name_is_removed",
        "cache": "only_our_own_files_are_ever_removed",
        "checkpoints": "an_altered_file_is_fetched_again a_newer_release_is_not_mistaken_for_what_is_kept",
        "hub": "tampered consistent_but_wrong copy_replaced_by_a_link names_that_leave_the_cache",
    }),
    Row(ATTACK, "text that steers a terminal or a page: servers', files', models' and metadata's", {
        "text": "clean messages_of_our_loggers messages_of_a_library errors reports",
        "download": "what_a_server_says_steers_no_terminal",
        "hub": "what_the_hub_says_steers_no_terminal",
        "bake": "hostile_names_stay_in_their_place",
        "report": "hostile_text_stays_text formulas_are_no_formulas",
    }),
    Row(ATTACK, "passwords and tokens: sent to whom they are for, shown to nobody", {
        "download": "an_address_with_a_user a_password_goes_to_its_own_server_only a_password_is_shown_to_nobody",
        "hub": "an_address_with_a_password token_is_nowhere",
    }),
)  # fmt: skip

TEXT = """\
# Under fault and attack

What was tried so that one line tells what went wrong, nothing is lost and nothing is let in; every row names the tests
that try it. `python benchmarks/robustness.py` runs them and writes this page. Where a test tries many inputs, each
counts.

{totals}

{table}

Fuzzing goes on for as long as one likes with `python benchmarks/fuzz.py`. In six minutes it tried 24,000 inputs; each
was read or refused, the slowest in 0.3 s.

The bounds, each kept by a test above:

* A checkpoint's pickle has at most {instructions:,} instructions, {text} MiB of text, numbers of {number} bytes, and is
  nested {depth} deep. A packed file may unpack to 8 times its size (16 MiB are always allowed), for weights are noise,
  which hardly can be packed. Tensors of one storage may take 4 times what it holds, for weights are tied, not repeated.
* A safetensors header has at most {header} MiB.
* A download brings something every {timeout:.0f} seconds and at least {slowest:.0f} bytes a second over {window:.0f}
  seconds, and is whole after {longest:.0f} minutes and within {largest} GiB.
* Of finished weights on the Hub, config.json has at most {config} MiB and the weights 16 times the size of what is
  predicted and {rest} GiB. How long huggingface_hub waits for them is its own affair (`HF_HUB_DOWNLOAD_TIMEOUT`).
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the page there (default: print it)")
    args = parser.parse_args()
    text = page(run())
    if args.markdown is None:
        print(text)
    else:
        args.markdown.write_text(text, encoding="utf-8")


def run() -> dict[tuple[str, str], Counter[str]]:
    """How much each test tried, and how much of it held."""
    wanted = sorted({name for row in ROWS for name in row.names()})
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        ids = [f"tests/{file}.py::{name}" for file, name in wanted]
        command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", "-o", "junit_family=xunit1", *ids]
        subprocess.run(command, cwd=ROOT, check=False)
        cases = ElementTree.parse(report).getroot().iter("testcase")
        counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        for case in cases:
            if case.find("skipped") is not None:
                continue
            properties = {p.get("name"): p.get("value", "") for p in case.iter("property")}
            tried = int(properties.get("tried") or 1)
            key = case.get("classname", "").rpartition(".")[2], case.get("name", "").partition("[")[0]
            counts[key]["tried"] += tried
            if case.find("failure") is None and case.find("error") is None:
                counts[key]["held"] += tried
    return counts


def page(counts: dict[tuple[str, str], Counter[str]]) -> str:
    from timm_ghn_init.checkpoints import download, safetensors_header, unpickle
    from timm_ghn_init.weights import hub

    totals: dict[str, Counter[str]] = defaultdict(Counter)
    lines = ["| kind | what | tried | held | shown by |", "|---|---|---|---|---|"]
    for row in ROWS:
        total = sum((counts[name] for name in row.names()), Counter())
        totals[row.kind] += total
        lines.append(f"| {row.kind} | {row.what} | {total['tried']:,} | {total['held']:,} | {row.shown()} |")
    summary = ["| kind | tried | held |", "|---|---|---|"]
    summary += [f"| {kind} | {c['tried']:,} | {c['held']:,} |" for kind, c in totals.items()]
    return TEXT.format(
        totals="\n".join(summary),
        table="\n".join(lines),
        instructions=unpickle.MOST_INSTRUCTIONS,
        text=unpickle.MOST_TEXT >> 20,
        number=unpickle.LONGEST_NUMBER,
        depth=unpickle.DEEPEST,
        header=safetensors_header.LARGEST >> 20,
        timeout=download.TIMEOUT,
        slowest=download.SLOWEST,
        window=download.WINDOW,
        longest=download.LONGEST / 60,
        largest=download.LARGEST >> 30,
        config=hub.MAX_CONFIG >> 20,
        rest=hub.MAX_REST >> 30,
    )


if __name__ == "__main__":
    main()
