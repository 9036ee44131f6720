"""Write the backend's settings into docs/settings.md: `make readme`, after a setting changed."""

from __future__ import annotations

import re
from pathlib import Path

from backend.settings import settings_table

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "settings.md"


def main() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    table = f"<!-- settings -->\n{settings_table()}\n<!-- end of settings -->"
    text, count = re.subn(r"<!-- settings -->\n.*?\n<!-- end of settings -->", lambda _: table, text, flags=re.DOTALL)
    if count != 1:
        raise SystemExit("docs/settings.md must have one table between <!-- settings --> and <!-- end of settings -->.")
    DOCUMENT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
