"""The type checker of the shape hook: beartype, with ints accepted where floats are."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
