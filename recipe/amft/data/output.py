"""What a preparation writes: parquet files and report.json in one folder, which is never half written; its summary."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recipe.amft.data.general_points import write_parquet
from recipe.amft.data.records import sha256_of
from recipe.amft.data.rows import SPLITS

REPORT = "report.json"
OWN_FILES = {REPORT, *(f"{split}.parquet" for split in SPLITS)}


def fill_folder(splits: Mapping[str, list[dict[str, Any]]], report: dict[str, Any], folder: Path) -> None:
    """Write the files into an existing folder; `report["splits"]` gets counts and checksums."""
    report["splits"] = {}
    for split, rows in splits.items():
        path = folder / f"{split}.parquet"
        write_parquet(rows, path)
        sources = [row["data_source"] for row in rows]
        report["splits"][split] = {
            "file": path.name,
            "sha256": sha256_of(path),
            "rows": len(rows),
            "by_source": {source: sources.count(source) for source in sorted(set(sources))},
        }
    (folder / REPORT).write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def check_folder(out: Path, overwrite: bool) -> None:
    """ValueError unless `out` is new or empty, or holds an earlier preparation that may be replaced."""
    if not out.exists():
        return
    if not out.is_dir():
        raise ValueError(f"out={str(out)!r} is a file; give a folder.")
    names = {path.name for path in out.iterdir()}
    strange = sorted(names - OWN_FILES)
    if strange:
        raise ValueError(
            f"out={str(out)!r} holds files that no preparation writes ({', '.join(strange[:5])}); give an empty folder."
        )
    if names and not overwrite:
        raise ValueError(
            f"out={str(out)!r} holds {', '.join(sorted(names))}; give another folder, or replace them with --overwrite."
        )


def replace_folder(splits: Mapping[str, list[dict[str, Any]]], report: dict[str, Any], out: Path) -> None:
    """Write beside `out`, then take its place: files of an earlier preparation do not stay among new ones."""
    out = Path(os.path.abspath(out))
    unfinished, earlier = (out.with_name(f".{out.name}.{os.getpid()}.{what}") for what in ("new", "old"))
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        unfinished.mkdir()
        fill_folder(splits, report, unfinished)
        if out.exists():
            os.replace(out, earlier)
        os.replace(unfinished, out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        if earlier.exists() and not out.exists():
            os.replace(earlier, out)
        shutil.rmtree(earlier, ignore_errors=True)


def summary(report: Mapping[str, Any]) -> str:
    """The report as a few lines for the console."""
    facts = [fact for part in report["sources"].values() for fact in part]
    names = ", ".join(f"{fact.get('file') or fact['hub']} (sha256 {fact['sha256'][:8]})" for fact in facts[:4])
    lines = [f"{report['name']} from {names}{', ...' if len(facts) > 4 else ''}"]
    for split, number in report["records"].items():
        repeats, leaks = report["duplicates"][split], report["leaks"].get(split, {"count": 0})
        lines.append(
            f"  read       {split:<10} {number:>7,} records; {repeats['count']:,} repeat a prompt"
            f"{_other_answers(repeats)}; {leaks['count']:,} are in an evaluation split or file"
        )
    if report["other_sources"]:
        skipped = ", ".join(f"{name} {number:,}" for name, number in report["other_sources"].items())
        lines.append(f"  not asked for         {skipped}")
    for kind, rows in report["bad_rows"].items():
        lines.append(f"  dropped    {kind:<15} {rows['count']:>7,}  e.g. {rows['rows'][0][:90]}")
    for split, written in report["splits"].items():
        sources = ", ".join(f"{name} {number:,}" for name, number in written["by_source"].items())
        lines.append(f"  {split:<10} {written['rows']:>7,} rows ({sources}){_tokens(report['tokens'].get(split))}")
    return "\n".join(lines)


def _other_answers(repeats: Mapping[str, Any]) -> str:
    number = len(repeats["other_answer"])
    return f" ({number} with another answer)" if number else ""


def _tokens(statistics: Mapping[str, Any] | None) -> str:
    if not statistics:
        return ""
    parts = [f"{what} tokens mean {found['mean']:,.0f}, most {found['max']:,}" for what, found in statistics.items()]
    return "; " + ", ".join(parts)
