"""Colours and markers of primitives, edges and frames."""

# Groups differ by marker (matplotlib's), the primitives of a group by colour. The hues of Okabe and Ito with darker and
# lighter shades: two primitives with one marker differ for colour-blind readers and in grey.
GROUPS = {
    "weights": "o",
    "vectors": "s",
    "pooling": "v",
    "joins": "D",
    "attention, gates": "h",
    "inputs": "p",
}
STYLES: dict[str, tuple[str, str]] = {
    "conv": ("weights", "#0072b2"),
    "sep_conv": ("weights", "#6ec1ef"),
    "dil_conv": ("weights", "#0b2e4f"),
    "bias": ("vectors", "#c4c4c4"),
    "bn": ("vectors", "#e69f00"),
    "ln": ("vectors", "#c04000"),
    "max_pool": ("pooling", "#00523c"),
    "avg_pool": ("pooling", "#009e73"),
    "glob_avg": ("pooling", "#8fdcc3"),
    "sum": ("joins", "#2b2b2b"),
    "concat": ("joins", "#9a9a9a"),
    "msa": ("attention, gates", "#d98cb3"),
    "cse": ("attention, gates", "#7a1f55"),
    "input": ("inputs", "#2b2b2b"),
    "pos_enc": ("inputs", "#f0e442"),
}
UNKNOWN = ("weights", "#ffffff")

OUTLINE = "#3a3a3a"
STAGE, BLOCK = "#f2f4f7", "#c9d0d8"  # stages are filled, blocks are outlined
CHAIN, SKIP, CROWDED_SKIP = "#7b8794", "#b0573a", "#e4c5bb"
