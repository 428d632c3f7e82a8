"""Pages of what eval.py compared, with both answers to each task whose verdict changed.

    python eval.py --compare DIR_A DIR_B --out DIR
    python eval.py --table DIR DIR ... --out DIR
    python selfcodealign.py comparison --out DIR

The first two write compare.json and table.json; the third writes compare.html and table.html from them.
"""

import argparse
import json
from pathlib import Path

import jinja2

from parts.rows import BadInput, whole, write_atomically

PAGES = jinja2.FileSystemLoader(Path(__file__).parent / "pages")


def write_pages(folder: Path):
    """Render compare.json as compare.html and table.json as table.html, in `folder`. Raises BadInput."""
    templates = jinja2.Environment(loader=PAGES, autoescape=True)
    files = [file for file in (folder / "compare.json", folder / "table.json") if file.is_file()]
    if not files:
        raise BadInput(f"no compare.json or table.json in {folder}: eval.py --compare or --table writes them")
    for file in files:
        page = file.with_suffix(".html")
        try:
            contents = json.loads(file.read_text())
            contents.setdefault("runs", [contents])  # compare.json of one pair is that pair
            ends = scale_ends(contents) if file.name == "table.json" else {}
            text = templates.get_template(page.name).render(contents, highest=ends)
        except (ValueError, TypeError, KeyError, AttributeError, jinja2.TemplateError) as error:
            raise BadInput(f"{file} is not what eval.py writes: {error}") from None
        write_atomically(page, whole(text))
        print(f"page: {page}")


def scale_ends(table: dict) -> dict[str, float]:
    """The largest score that an interval reaches, by suite."""
    scores = [row["scores"] for row in table["rows"]]
    return {
        suite: max(found[suite]["interval"][1] for found in scores if suite in found)
        for suite in table["suites"]
    }


def main(words: list[str]):
    parser = argparse.ArgumentParser("selfcodealign.py comparison", description="pages of what eval.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="the folder of compare.json or table.json")
    write_pages(parser.parse_args(words).out)
