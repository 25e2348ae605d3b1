"""``python -m zoo`` prints the gallery of architectures; ``--markdown`` as the table that README.md shows."""

import argparse
import sys

from zoo.registry import entry
from zoo.registry import list as names


def gallery(markdown: bool = False) -> str:
    """Every registered architecture with its summary, paper and variants."""
    lines = []
    for kind in ("mixer", "model"):
        if markdown:
            lines += ["", f"| {kind} | what it is | variants tested | source |", "|---|---|---|---|"]
        else:
            lines += ["", f"{kind}s", ""]
        for name in names(kind):
            e = entry(name)
            variants = ", ".join(e.variants)
            if markdown:
                lines.append(f"| `{name}` | {e.summary} | {variants} | {e.paper} |")
            else:
                lines.append(f"  {name:30} {e.summary}\n{'':33}{e.paper}; variants: {variants}")
    return "\n".join(lines[1:])


def main(argv: "list[str]") -> int:
    """Prints the gallery."""
    parser = argparse.ArgumentParser(prog="python -m zoo", description="The gallery of architectures.")
    parser.add_argument("--markdown", action="store_true", help="as a Markdown table")
    print(gallery(parser.parse_args(argv).markdown))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
