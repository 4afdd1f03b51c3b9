"""Evaluations as a table of text."""

from __future__ import annotations

from collections.abc import Iterable

from tabulate import tabulate


def table(evaluated: Iterable[tuple[dict, list[dict]]]) -> str:
    """One row per evaluation, with footnotes for its flags.

    Args:
        evaluated: for each model the contents of results.json (method and seed) and its records,
            the clean one first.
    """
    rows, footnotes = [], []
    for results, (clean, *records) in evaluated:
        for record in records or [clean]:
            marks = []
            for name, text in record["flags"].items():
                footnote = f"{name}: {text}"
                if footnote not in footnotes:
                    footnotes.append(footnote)
                marks.append(str(footnotes.index(footnote) + 1))
            threat = record["threat_model"] or {}
            attack, precision = record["attack"], threat.get("precision", "fp32")
            rows.append(
                {
                    "method": results["method"],
                    "seed": results["seed"],
                    "attack": attack if precision == "fp32" else f"{attack} ({precision})",
                    "norm": threat.get("norm", "-"),
                    "eps": f"{threat['eps']:g}/255" if threat else "-",
                    "source": threat.get("source", "-"),
                    "images": f"{record['total']}{' (val)' if record['split'] == 'val' else ''}",
                    "clean (%)": f"{clean['accuracy']:.1f}",
                    "robust (%)": f"{record['accuracy']:.1f}" if threat else "-",
                    "flags": ", ".join(marks),
                    "seconds": f"{record['seconds']:.0f}",
                }
            )
    text = tabulate(rows, "keys", disable_numparse=True)
    return "\n".join([text, *(f"[{i}] {note}" for i, note in enumerate(footnotes, start=1))])
