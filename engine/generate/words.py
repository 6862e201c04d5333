"""The closed lists that facts about an entity are drawn from: two of eight words a field, with no word in both."""

FIELDS = ("color", "home", "trade", "tool")
FIRST = (
    ("red", "blue", "gold", "gray", "pink", "teal", "jade", "plum"),
    ("Arn", "Bex", "Cove", "Dell", "Fenn", "Gorse", "Holt", "Lund"),
    ("baker", "cooper", "diver", "fowler", "mason", "potter", "tailor", "weaver"),
    ("bell", "drum", "flute", "kettle", "lamp", "net", "rope", "sieve"),
)
SECOND = (
    ("black", "white", "rust", "lime", "navy", "mint", "coral", "tan"),
    ("Mere", "Nore", "Penn", "Quay", "Stowe", "Thorn", "Vale", "Wick"),
    ("carter", "dyer", "grocer", "hunter", "joiner", "miller", "porter", "sailor"),
    ("brush", "file", "hammer", "jar", "mirror", "pen", "quilt", "whip"),
)
