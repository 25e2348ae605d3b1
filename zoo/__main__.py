"""``python -m zoo`` prints the gallery of architectures; ``python -m zoo compare NAMES`` measures some of them.

python -m zoo --markdown                        the gallery as the table that README.md shows
python -m zoo compare mamba2 s5 lstm attention --lengths 1024 4096 16384 --plot compare.png
"""

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
    """Prints the gallery, or a comparison; returns 2 for wrong names and sizes."""
    parser = argparse.ArgumentParser(prog="python -m zoo", description="The gallery of architectures.")
    parser.add_argument("--markdown", action="store_true", help="as a Markdown table")
    commands = parser.add_subparsers(dest="command")
    compare = commands.add_parser("compare", help="time, memory, decoding speed and state size of mixers, side by side")
    compare.add_argument("mixers", nargs="+", metavar="NAME", help="registered mixers")
    compare.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096], help="sequence lengths")
    compare.add_argument("--dim", type=int, default=128, help="width")
    compare.add_argument("--batch", type=int, default=1, help="rows of a training step")
    compare.add_argument("--repeats", type=int, default=5, help="runs per measurement; the median is reported")
    compare.add_argument("--plot", default="compare.png", help="file for the drawing; empty for none")
    options = parser.parse_args(argv)
    if options.command is None:
        print(gallery(options.markdown))
        return 0
    from zoo.analysis import comparison

    try:
        rows = comparison.compare(
            options.mixers, lengths=options.lengths, dim=options.dim, batch_size=options.batch, repeats=options.repeats
        )
    except ValueError as error:
        print(f"python -m zoo compare: {error}", file=sys.stderr)
        return 2
    print(comparison.table(rows))
    if options.plot:
        comparison.plot(rows).savefig(options.plot, dpi=120)
        print(f"\ndrawing: {options.plot}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
