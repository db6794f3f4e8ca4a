"""Copy the outputs of cells marked for nbval from executed chapters into the sources.

    python tools/keep_checked_outputs.py EXECUTED_FOLDER

Only cells whose first line is `# NBVAL_CHECK_OUTPUT` keep an output; all others are stripped. Run it after such a cell
changed, and read the difference before committing it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat

MARK = "# NBVAL_CHECK_OUTPUT"
NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"


def main(executed: str) -> None:
    """Rewrite the sources in place."""
    for path in sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")):
        book = nbformat.read(path, as_version=4)
        made = nbformat.read(Path(executed) / path.name, as_version=4)
        outputs = {cell["source"]: cell["outputs"] for cell in made["cells"] if cell["cell_type"] == "code"}
        for cell in book["cells"]:
            if cell["cell_type"] == "code":
                checked = cell["source"].startswith(MARK)
                count = 1 if checked else None  # nbval refuses outputs of a cell that never ran
                cell["execution_count"] = count
                cell["outputs"] = outputs[cell["source"]] if checked else []
                for output in cell["outputs"]:
                    if "execution_count" in output:
                        output["execution_count"] = count
        nbformat.write(book, path)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
